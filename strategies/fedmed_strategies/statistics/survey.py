"""What a consortium knows of its images before it trains: how fine, how large, how bright, and how much of each class.

Each is a histogram over patients. Without noise, no bin tells of fewer than the site's least number of patients; and what leaves
stays the same until as many came or went, which the site sees to.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedmed_common.intensities import DECILES, landmarks, on_scale
from fedmed_common.site_config import UNLABELLED
from fedmed_common.tasks import Case
from fedmed_strategies.pieces import Arrays
from fedmed_strategies.statistics.base import Patient, Sizes, Statistic
from fedmed_strategies.statistics.bins import Bins, Numbers, grouped, to_seen

SPACINGS = Bins(0.05, 20.0, 126, logarithmic=True)
"""mm along an axis, in steps of 5 %."""
EXTENTS = Bins(1.0, 4096.0, 145, logarithmic=True)
"""Voxels along an axis, in steps of 6 %."""
LEVELS = Bins(0.0, 1.0, 257)
"""From the lower to the upper bound of ``data.intensity``."""
VOLUMES = Bins(1.0, 1e7, 85, logarithmic=True)
"""mm^3 of a class in a case, in steps of 21 %."""

_AT_ONCE = 8


class Survey(Statistic):
    """What is asked where nothing is trained, with ``rounds = 0``."""


class Shapes(Survey):
    """``spacing`` ``(3, B)``: patients by the length of their voxels along R, A, S; ``extent`` ``(3, B)``: by how many there are;
    ``patients`` ``(1,)``. A patient of several cases is shared among their bins."""

    name = "shapes"

    def zeros(self, sizes: Sizes) -> Arrays:
        """Its arrays without any patient."""
        return {
            "spacing": np.zeros((3, SPACINGS.count), np.float32),
            "extent": np.zeros((3, EXTENTS.count), np.float32),
            "patients": np.zeros(1, np.float32),
        }

    def of_patient(self, patient: Patient, sizes: Sizes) -> Arrays:
        """The mean of the cases' ones."""
        spacing = SPACINGS.ones(np.array([case.spacing_mm for case in patient.cases]))
        extent = EXTENTS.ones(np.array([case.label.shape for case in patient.cases], np.float64))
        return {
            "spacing": spacing.mean(axis=0).astype(np.float32),
            "extent": extent.mean(axis=0).astype(np.float32),
            "patients": np.ones(1, np.float32),
        }

    def sensitivity(self, sizes: Sizes) -> float:
        """Of a one along each axis, twice, and one."""
        return float(np.sqrt(7))

    def releasable(self, sums: Arrays, least_patients: int) -> Arrays:
        """Bins in groups of enough patients; nothing where there are fewer."""
        few = sums["patients"][0] < least_patients
        told = {
            name: grouped(sums[name], least_patients).astype(np.float32) for name in ("spacing", "extent")
        }
        return {**told, "patients": np.zeros(1, np.float32) if few else sums["patients"]}


class Intensities(Survey):
    """``image``, ``foreground`` ``(C, B)``: sums over patients of the share of voxels in each bin, of all and of the labelled
    ones.

    Each patient counts once, however large the images are."""

    name = "intensities"

    def zeros(self, sizes: Sizes) -> Arrays:
        """Its arrays without any patient."""
        shape = (sizes.channels, LEVELS.count)
        return {name: np.zeros(shape, np.float32) for name in ("image", "foreground")}

    def aside(self, sizes: Sizes) -> Arrays:
        """How many patients have a voxel in each bin, and in each channel."""
        return {f"{name}_seen": array for name, array in self.zeros(sizes).items()} | {
            f"{name}_patients": np.zeros(sizes.channels, np.float32) for name in self.zeros(sizes)
        }

    def of_patient(self, patient: Patient, sizes: Sizes) -> Arrays:
        """The mean of the cases' shares."""
        found: Arrays = {}
        for name in self.zeros(sizes):
            shares = [_shares(case, of_labels=name == "foreground") for case in patient.cases]
            told = [share for share in shares if share is not None]
            mean = np.mean(told, axis=0) if told else np.zeros((sizes.channels, LEVELS.count))
            found[name] = mean.astype(np.float32)
            found[f"{name}_seen"] = (mean > 0).astype(np.float32)
            found[f"{name}_patients"] = np.asarray((mean > 0).any(axis=1), np.float32)
        return found

    def sensitivity(self, sizes: Sizes) -> float:
        """Of a one for each channel, twice: shares of 1 are no longer than 1."""
        return float(np.sqrt(2 * sizes.channels))

    def releasable(self, sums: Arrays, least_patients: int) -> Arrays:
        """What few patients show is counted with the nearest bin that enough do; where few show none, all are said to show
        some."""
        everyone = sums["image_patients"]
        return {
            name: _none_lacking(
                to_seen(sums[name], sums[f"{name}_seen"], least_patients),
                everyone - sums[f"{name}_patients"],
                least_patients,
            )
            for name in ("image", "foreground")
        }


class Volumes(Survey):
    """``shown`` ``(K, B)``: patients who show a class, by its volume in their cases that do; ``annotated`` ``(K,)``: patients in
    whom it was looked for. With noise, a patient counts for ``most_classes`` at most, the first in the task's order."""

    name = "volumes"
    most_classes: Annotated[int, Field(ge=1)] = 4

    def zeros(self, sizes: Sizes) -> Arrays:
        """Its arrays without any patient."""
        shown = np.zeros((sizes.classes, VOLUMES.count), np.float32)
        return {"shown": shown, "annotated": np.zeros(sizes.classes, np.float32)}

    def of_patient(self, patient: Patient, sizes: Sizes) -> Arrays:
        """The mean of the ones of the cases that show a class."""
        shown = np.zeros((sizes.classes, VOLUMES.count))
        counted = 0
        for place, known in enumerate(patient.annotated):
            volumes = [_volume_mm3(case, place) for case in patient.cases if case.annotated[place]]
            volumes = [volume for volume in volumes if volume]
            if known and volumes and (self.epsilon is None or counted < self.most_classes):
                counted += 1
                shown[place] = VOLUMES.ones(np.array(volumes)).mean(axis=0)
        return {"shown": shown.astype(np.float32), "annotated": patient.annotated.astype(np.float32)}

    def sensitivity(self, sizes: Sizes) -> float:
        """The root of the ones that a patient can add."""
        shown = sizes.classes if self.epsilon is None else min(self.most_classes, sizes.classes)
        return float(np.sqrt(shown + sizes.classes))

    def releasable(self, sums: Arrays, least_patients: int) -> Arrays:
        """Bins in groups of enough patients; nothing of a class that fewer show. Where few lack it, all are said to show it."""
        shown, annotated = sums["shown"].astype(np.float64), sums["annotated"].astype(np.float64)
        annotated = np.where(annotated < least_patients, 0.0, annotated)
        told = grouped(shown, least_patients) * (annotated > 0)[:, None]
        lacking = annotated - told.sum(axis=1)
        return {
            "shown": _none_lacking(told, lacking, least_patients),
            "annotated": annotated.astype(np.float32),
        }


class Landmarks(Survey):
    """``places`` ``(C, 9)``: sums over patients of where the deciles of the foreground lie between its ends, 0 to 1;
    ``patients`` ``(1,)``. Their mean is the standard scale of ``data.intensity.kind = 'landmarks'``."""

    name = "landmarks"
    source = "Nyul and Udupa 1999, 'On standardizing the MR image intensity scale', MRM 42"

    def zeros(self, sizes: Sizes) -> Arrays:
        """Its arrays without any patient."""
        return {
            "places": np.zeros((sizes.channels, len(DECILES)), np.float32),
            "patients": np.zeros(1, np.float32),
        }

    def of_patient(self, patient: Patient, sizes: Sizes) -> Arrays:
        """The mean of the cases' places."""
        places = np.mean([on_scale(landmarks(case.image)) for case in patient.cases], axis=0)
        return {
            "places": np.clip(places, 0.0, 1.0).astype(np.float32),
            "patients": np.ones(1, np.float32),
        }

    def sensitivity(self, sizes: Sizes) -> float:
        """Of places of at most 1, and a one."""
        return float(np.sqrt(sizes.channels * len(DECILES) + 1))

    def releasable(self, sums: Arrays, least_patients: int) -> Arrays:
        """Nothing where there are few patients."""
        few = sums["patients"][0] < least_patients
        return {name: np.zeros_like(array) if few else array for name, array in sums.items()}


def _none_lacking(told: Numbers, lacking: Numbers, least_patients: int) -> NDArray[np.float32]:
    """Rows ``(K, B)`` with those patients, where they are few, whom a row lacks: in its largest bin."""
    rows = np.array(told, np.float64)
    few = (rows.sum(axis=1) > 0) & (lacking > 0) & (lacking < least_patients)
    places = np.flatnonzero(few)
    rows[places, rows[places].argmax(axis=1)] += lacking[places]
    return rows.astype(np.float32)


def _volume_mm3(case: Case, place: int) -> float:
    return float(np.count_nonzero(case.label == place + 1) * np.prod(case.spacing_mm))


def _shares(case: Case, *, of_labels: bool) -> Numbers | None:
    """``(C, B)``: the share of a channel's voxels in each bin; None where there is none."""
    counts = np.zeros((len(case.image), LEVELS.count))
    for begin in range(0, case.label.shape[0], _AT_ONCE):
        part = slice(begin, begin + _AT_ONCE)
        label = case.label[part]
        wanted = (label > 0) & (label != UNLABELLED) if of_labels else label != UNLABELLED
        for channel, image in enumerate(case.image):
            counts[channel] += np.bincount(LEVELS.places(image[part][wanted]), minlength=LEVELS.count)
    return counts / counts[0].sum() if counts[0].sum() else None
