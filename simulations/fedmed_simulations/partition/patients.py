"""A pool's patients as arrays, and what dealing them to sites comes to."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedmed_client.data.cohort import Cohort

LEFT_OUT = -1
"""In the place of a site: a training patient whom no site gets."""

Homes = NDArray[np.int64]
"""``(N,)``: the number of each patient's site, or ``LEFT_OUT``."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Patients:
    """``number``: ``(N,)``, ``Case.patient``, ascending; ``split``: ``(N,)``; ``shows``: ``(N, K)``, any case shows the class."""

    number: NDArray[np.int64]
    split: NDArray[np.str_]
    shows: NDArray[np.bool_]

    @property
    def trains(self) -> NDArray[np.bool_]:
        """``(N,)``: whether the patient is in the training split."""
        return np.asarray(self.split == "train")

    def training(self, homes: Homes, sites: int) -> NDArray[np.int64]:
        """Training patients of each site, ``(S,)``."""
        return np.bincount(homes[self.trains & (homes != LEFT_OUT)], minlength=sites)

    def positives(self, homes: Homes, sites: int) -> NDArray[np.int64]:
        """Training patients who show each class at each site, ``(S, K)``."""
        found = np.zeros((sites, self.shows.shape[1]), np.int64)
        dealt = self.trains & (homes != LEFT_OUT)
        np.add.at(found, homes[dealt], self.shows[dealt])
        return found


def patients_of(cohort: Cohort) -> Patients:
    """The patients of a cohort, by number."""
    shows: dict[int, NDArray[np.bool_]] = {}
    split: dict[int, str] = {}
    for case in cohort.cases:
        mask = np.array(case.present, dtype=bool)
        shows[case.patient] = shows[case.patient] | mask if case.patient in shows else mask
        split[case.patient] = case.split
    numbers = sorted(split)
    return Patients(
        number=np.array(numbers, np.int64),
        split=np.array([split[number] for number in numbers]),
        shows=np.array([shows[number] for number in numbers]).reshape(-1, len(cohort.classes)),
    )
