"""First and second moments, by class, of what the network's last layer sees: enough to train that layer anew."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedmed_common.fields import Positive
from fedmed_strategies.pieces import Arrays
from fedmed_strategies.statistics.base import Patient, Sizes, Statistic, clipped, without_few


class Moments(Statistic):
    """By output c, over patients who show it: ``patients`` ``(C,)``, sums of mean features ``first`` ``(C, D)``, and of mean
    outer products ``second`` ``(C, D, D)``, over the voxels of class c of each patient.

    Each voxel's feature vector is ``bound`` long at most, and a patient counts once for each class, however many voxels: one
    patient, one vote. With noise, a patient counts for ``most_classes`` outputs at most, the rarest come last in the task's
    order."""

    name = "moments"
    source = (
        "Luo et al. 2021, 'No fear of heterogeneity: classifier calibration for federated learning with non-IID data', "
        "NeurIPS, section 4"
    )
    with_model = True
    bound: Positive = 10.0
    most_classes: Annotated[int, Field(ge=1)] = 8

    def zeros(self, sizes: Sizes) -> Arrays:
        """Its arrays without any patient."""
        c, d = sizes.outputs, sizes.features
        shapes = {"patients": (c,), "first": (c, d), "second": (c, d, d)}
        return {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}

    def of_patient(self, patient: Patient, sizes: Sizes) -> Arrays:
        """The patient's moments."""
        voxels = np.zeros(sizes.outputs)
        first = np.zeros((sizes.outputs, sizes.features))
        second = np.zeros((sizes.outputs, sizes.features, sizes.features))
        for case in patient.cases:
            for features_DN, label_N in patient.features(case):
                self._add(clipped(features_DN, self.bound), label_N, voxels, first, second)
        shown = voxels > 0
        if self.epsilon:
            shown &= np.cumsum(shown[::-1])[::-1] <= self.most_classes
        share = np.where(shown, 1.0 / np.maximum(voxels, 1.0), 0.0)
        return {
            "patients": shown.astype(np.float32),
            "first": (first * share[:, None]).astype(np.float32),
            "second": (second * share[:, None, None]).astype(np.float32),
        }

    def releasable(self, sums: Arrays, least_patients: int) -> Arrays:
        """Without classes of few patients."""
        return without_few(sums, "patients", ("first", "second"), least_patients)

    def sensitivity(self, sizes: Sizes) -> float:
        """Of a one, a mean and an outer product for each class that a patient counts for."""
        classes = sizes.outputs if self.epsilon is None else min(self.most_classes, sizes.outputs)
        return float(np.sqrt(classes * (1 + self.bound**2 + self.bound**4)))

    def _add(
        self,
        features_DN: NDArray[np.float32],
        label_N: NDArray[np.int64],
        voxels: NDArray[np.float64],
        first: NDArray[np.float64],
        second: NDArray[np.float64],
    ) -> None:
        for output in np.unique(label_N).tolist():
            if output < len(voxels):
                of_class = features_DN[:, label_N == output].astype(np.float64)
                voxels[output] += of_class.shape[1]
                first[output] += of_class.sum(axis=1)
                second[output] += of_class @ of_class.T
