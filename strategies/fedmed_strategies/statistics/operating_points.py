"""How each class would be found if it were called more or less readily."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator

from fedmed_common.site_config import UNLABELLED
from fedmed_common.tasks import Case
from fedmed_strategies.pieces import Arrays
from fedmed_strategies.statistics.base import Patient, Sizes, Statistic

MOST_POINTS = 50
_TINY = 1e-30


class OperatingPoints(Statistic):
    """How each class would be found with its logit higher or lower, and where little of it is called none at all.

    By class, offset of its logit (the others as they are) and least volume: sums over patients of Dice where the class is shown
    (``dice``), and of whether it is called where it is not (``false``), each ``(K, T, V)``; ``shown``, ``absent`` ``(K,)``:
    patients. Less than the least volume of a class in a case, in mm^3, counts as nothing.

    A greater least volume takes patients out of a sum of Dice. Without noise, one that takes out fewer than the site's
    ``least_patients``, or leaves fewer, is said to be as good as the next greater that does not; 0 where there is none. So no
    two of a row's numbers differ by what few patients have."""

    name = "operating_points"
    with_model = True
    offsets: tuple[float, ...] = Field(
        (-5.0, -4.0, -3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0), min_length=1, max_length=MOST_POINTS
    )
    volumes_mm3: tuple[Annotated[float, Field(ge=0.0)], ...] = Field(
        (0.0, 250.0, 500.0, 1000.0, 2000.0, 4000.0, 6000.0, 8000.0, 12000.0, 16000.0, 24000.0, 32000.0),
        min_length=1,
        max_length=MOST_POINTS,
    )

    @field_validator("offsets", "volumes_mm3")
    @classmethod
    def _ascending(cls, values: tuple[float, ...]) -> tuple[float, ...]:
        if any(first >= second for first, second in pairwise(values)):
            raise ValueError("each must be greater than the one before it")
        return values

    def zeros(self, sizes: Sizes) -> Arrays:
        """Its arrays without any patient."""
        table, row = (sizes.classes, len(self.offsets), len(self.volumes_mm3)), (sizes.classes,)
        shapes: dict[str, tuple[int, ...]] = {"dice": table, "false": table, "shown": row, "absent": row}
        return {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}

    def aside(self, sizes: Sizes) -> Arrays:
        """``called``, as ``dice``: patients who show the class and in whom it is called."""
        return {"called": self.zeros(sizes)["dice"]}

    def of_patient(self, patient: Patient, sizes: Sizes) -> Arrays:
        """The mean over the patient's cases."""
        parts = [self._of_case(patient, case, sizes) for case in patient.cases]
        sums = {name: np.sum([part[name] for part in parts], axis=0) for name in parts[0]}
        shown, absent = sums["shown"], sums["absent"]
        return {
            "called": (sums["called"] > 0).astype(np.float32),
            "dice": (sums["dice"] / np.maximum(shown, 1)[:, None, None]).astype(np.float32),
            "false": (sums["false"] / np.maximum(absent, 1)[:, None, None]).astype(np.float32),
            "shown": (shown > 0).astype(np.float32),
            "absent": (absent > 0).astype(np.float32),
        }

    def releasable(self, sums: Arrays, least_patients: int) -> Arrays:
        """No Dice by which few patients differ, and nothing of a class that few do not show. Of one that few show, only false
        calls: ``least_patients`` are taken to show it, and no more than the others can be called falsely."""
        shown, absent = sums["shown"], sums["absent"]
        few_show, few_lack = ((count > 0) & (count < least_patients) for count in (shown, absent))
        others = np.where(few_show, shown + absent - np.float32(least_patients), absent)
        others = np.where(few_lack, np.float32(0), np.maximum(others, np.float32(0)))
        known = ~(few_show | few_lack)
        return {
            "dice": _of_many(sums["dice"], sums["called"], least_patients) * known[:, None, None],
            "false": np.minimum(sums["false"], others[:, None, None]),
            "shown": shown * known,
            "absent": others,
        }

    def sensitivity(self, sizes: Sizes) -> float:
        """A Dice or a yes for each offset and volume, and a one, of both kinds where a patient's cases differ."""
        points = len(self.offsets) * len(self.volumes_mm3)
        return float(np.sqrt(2 * sizes.classes * (points + 1)))

    def _of_case(self, patient: Patient, case: Case, sizes: Sizes) -> dict[str, NDArray[np.float64]]:
        logits = np.log(np.maximum(patient.probabilities(case), _TINY))
        labelled = case.label != UNLABELLED
        ordered = np.sort(logits, axis=0)[-2:]
        empty = self.zeros(sizes) | self.aside(sizes)
        found = {name: array.astype(np.float64) for name, array in empty.items()}
        for place, known in enumerate(case.annotated):
            if not known:
                continue
            mine, truth = logits[place + 1], case.label == place + 1
            margin = mine - np.where(mine == ordered[1], ordered[0], ordered[1])
            called = self._voxels(margin[labelled])
            enough = self._enough(called, case)
            if truth.any():
                both = self._voxels(margin[truth])
                found["dice"][place] = (2 * both / (called + np.count_nonzero(truth)))[:, None] * enough
                found["called"][place], found["shown"][place] = enough, 1
            else:
                found["false"][place] = enough
                found["absent"][place] = 1
        return found

    def _voxels(self, margins: NDArray[np.float32]) -> NDArray[np.float64]:
        """By offset, how many voxels would be called the class."""
        return np.array([np.count_nonzero(margins > -offset) for offset in self.offsets], np.float64)

    def _enough(self, voxels: NDArray[np.float64], case: Case) -> NDArray[np.float64]:
        """By offset and least volume, whether that is enough to be called at all."""
        volume_mm3 = voxels[:, None] * float(np.prod(case.spacing_mm))
        return ((volume_mm3 >= np.array(self.volumes_mm3)) & (voxels[:, None] > 0)).astype(np.float64)


def _of_many(
    dice: NDArray[np.float32], called: NDArray[np.float32], least_patients: int
) -> NDArray[np.float32]:
    """The sums ``(K, T, V)`` over the ``called`` patients such that all that differ do so by ``least_patients`` or more.

    Along V, every set of patients lies in the one before it.
    """
    told, is_told = np.zeros_like(dice), np.zeros(dice.shape, bool)
    said, of = np.zeros_like(dice[..., 0]), np.full(dice.shape[:2], np.inf)
    for column in range(dice.shape[-1]):
        count = called[..., column]
        new = (count >= least_patients) & (of - count >= least_patients)
        said, of = np.where(new, dice[..., column], said), np.where(new, count, of)
        told[..., column], is_told[..., column] = said, count == of
    greater = np.zeros_like(said)
    for column in reversed(range(dice.shape[-1])):
        greater = told[..., column] = np.where(is_told[..., column], told[..., column], greater)
    return told
