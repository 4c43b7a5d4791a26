"""How many training patients there are, and how many show each class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedmed_strategies.pieces import Arrays
from fedmed_strategies.statistics.base import Patient, Sizes, Statistic

_LEAST = 0.5


class Counts(Statistic):
    """``presence``: patients who show each class, ``annotated``: patients in whom it was looked for, each ``(K,)``.

    A patient counts for ``most_classes`` classes at most, where there is noise: for those who show more, the first in the order
    of the task's classes. So the longest part of a patient is the root of that number and of the number of classes."""

    name = "counts"
    of_each_site = True
    most_classes: Annotated[int, Field(ge=1)] = 4

    def zeros(self, sizes: Sizes) -> Arrays:
        """Its arrays without any patient."""
        return {name: np.zeros(sizes.classes, np.float32) for name in ("presence", "annotated")}

    def of_patient(self, patient: Patient, sizes: Sizes) -> Arrays:
        """Ones."""
        shown = patient.present & patient.annotated
        if self.epsilon:
            shown = shown & (np.cumsum(shown) <= self.most_classes)
        return {"presence": shown.astype(np.float32), "annotated": patient.annotated.astype(np.float32)}

    def sensitivity(self, sizes: Sizes) -> float:
        """The root of the ones that a patient can add."""
        shown = sizes.classes if self.epsilon is None else min(self.most_classes, sizes.classes)
        return float(np.sqrt(shown + sizes.classes))

    def releasable(self, sums: Arrays, least_patients: int) -> Arrays:
        """A count that is positive and small is said to be ``least_patients``: a yes, and no more.

        Where every patient shows exactly one class, what the others leave of the patients would tell it. There the small ones and
        as many of the next as it takes for enough patients are each said to be their mean.
        """
        presence, annotated = sums["presence"], sums["annotated"]
        small = (presence > 0) & (presence < least_patients)
        if not small.any() or (annotated != presence.sum()).any():
            return {**sums, "presence": np.where(small, np.float32(least_patients), presence)}
        order = [place for place in np.argsort(presence, kind="stable") if presence[place] > 0]
        enough = np.cumsum(presence[order]) >= least_patients
        hidden = order[: max(int(small.sum()), int(np.argmax(enough)) + 1)]
        told = presence.copy()
        told[hidden] = presence[hidden].mean()
        return {**sums, "presence": told}


def counts_of(down: Mapping[str, NDArray[Any]]) -> NDArray[np.float64]:
    """By class, how many training patients of all sites show it; noise cannot make it negative."""
    return np.maximum(np.asarray(down["counts/presence"], np.float64), 0.0)


def prior(down: Mapping[str, NDArray[Any]]) -> NDArray[np.float64]:
    """By class, the share of those patients who show it among those in whom it was looked for: half a patient at least."""
    looked = np.maximum(np.asarray(down["counts/annotated"], np.float64), 1.0)
    return np.clip(np.maximum(counts_of(down), _LEAST) / looked, 0.0, 1.0)
