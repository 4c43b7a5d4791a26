"""The mean and the spread of each image channel at a site."""

from __future__ import annotations

import numpy as np

from fedmed_common.fields import Positive
from fedmed_strategies.pieces import Arrays
from fedmed_strategies.statistics.base import Patient, Sizes, Statistic


class Channels(Statistic):
    """``mean``, ``square`` ``(C,)``: sums over patients of a channel's mean and mean square; ``patients`` ``(1,)``.

    A patient's means are those of all voxels of the patient's cases, within +- ``bound``, their squares within its square.
    """

    name = "channels"
    of_each_site = True
    told_to_sites = False
    bound: Positive = 10.0

    def zeros(self, sizes: Sizes) -> Arrays:
        """Its arrays without any patient."""
        zero = {name: np.zeros(sizes.channels, np.float32) for name in ("mean", "square")}
        return {**zero, "patients": np.zeros(1, np.float32)}

    def of_patient(self, patient: Patient, sizes: Sizes) -> Arrays:
        """The patient's means."""
        images = [case.image.reshape(sizes.channels, -1) for case in patient.cases]
        voxels = sum(image.shape[1] for image in images)
        mean = sum(image.sum(axis=1, dtype=np.float64) for image in images) / voxels
        square = sum(np.square(image, dtype=np.float64).sum(axis=1) for image in images) / voxels
        return {
            "mean": np.clip(mean, -self.bound, self.bound).astype(np.float32),
            "square": np.clip(square, 0.0, self.bound**2).astype(np.float32),
            "patients": np.ones(1, np.float32),
        }

    def releasable(self, sums: Arrays, least_patients: int) -> Arrays:
        """Nothing where there are few patients."""
        few = sums["patients"][0] < least_patients
        return {name: np.zeros_like(array) if few else array for name, array in sums.items()}

    def sensitivity(self, sizes: Sizes) -> float:
        """Of means, mean squares and the one of the count."""
        return float(np.sqrt(1 + sizes.channels * (self.bound**2 + self.bound**4)))
