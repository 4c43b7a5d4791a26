"""How each class would be found if its logit were a little higher or lower."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedmed_common.site_config import UNLABELLED
from fedmed_strategies.pieces import Arrays
from fedmed_strategies.statistics.base import Patient, Sizes, Statistic, without_few

_TINY = 1e-30


class OperatingPoints(Statistic):
    """By class and offset of its logit, the others as they are: sums over patients of Dice where the class is shown
    (``dice``), and of whether any voxel is called it where it is not (``false``), each ``(K, T)``; ``shown``, ``absent``
    ``(K,)``: the patients."""

    name = "operating_points"
    with_model = True
    offsets: tuple[float, ...] = Field(
        (-6.0, -4.0, -3.0, -2.0, -1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0, 3.0), min_length=1
    )

    def zeros(self, sizes: Sizes) -> Arrays:
        """Its arrays without any patient."""
        table, row = (sizes.classes, len(self.offsets)), (sizes.classes,)
        shapes: dict[str, Any] = {"dice": table, "false": table, "shown": row, "absent": row}
        return {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}

    def of_patient(self, patient: Patient, sizes: Sizes) -> Arrays:
        """The mean over the patient's cases."""
        parts = [self._of_case(patient, case, sizes) for case in patient.cases]
        sums = {name: np.sum([part[name] for part in parts], axis=0) for name in parts[0]}
        shown, absent = sums["shown"], sums["absent"]
        return {
            "dice": (sums["dice"] / np.maximum(shown, 1)[:, None]).astype(np.float32),
            "false": (sums["false"] / np.maximum(absent, 1)[:, None]).astype(np.float32),
            "shown": (shown > 0).astype(np.float32),
            "absent": (absent > 0).astype(np.float32),
        }

    def releasable(self, sums: Arrays, least_patients: int) -> Arrays:
        """Without classes that few patients show, or few do not."""
        return without_few(
            without_few(sums, "shown", ("dice",), least_patients), "absent", ("false",), least_patients
        )

    def sensitivity(self, sizes: Sizes) -> float:
        """A Dice or a yes for each offset, and a one, of both kinds where a patient's cases differ."""
        return float(np.sqrt(2 * sizes.classes * (len(self.offsets) + 1)))

    def _of_case(self, patient: Patient, case: Any, sizes: Sizes) -> dict[str, NDArray[np.float64]]:
        logits = np.log(np.maximum(patient.probabilities(case), _TINY))
        labelled = case.label != UNLABELLED
        ordered = np.sort(logits, axis=0)[-2:]
        found = {name: array.astype(np.float64) for name, array in self.zeros(sizes).items()}
        for place, known in enumerate(case.annotated):
            if not known:
                continue
            mine, truth = logits[place + 1], case.label == place + 1
            others = np.where(mine == ordered[1], ordered[0], ordered[1])
            margin = (mine - others)[labelled]
            called = np.array([np.count_nonzero(margin > -offset) for offset in self.offsets])
            if truth.any():
                inside = (mine - others)[truth]
                both = np.array([np.count_nonzero(inside > -offset) for offset in self.offsets])
                found["dice"][place] = 2 * both / (called + np.count_nonzero(truth))
                found["shown"][place] = 1
            else:
                found["false"][place] = called > 0
                found["absent"][place] = 1
        return found
