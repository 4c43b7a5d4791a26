"""What a model makes of patients: which class it calls the voxels of each class."""

from __future__ import annotations

import numpy as np

from fedmed_common.site_config import UNLABELLED
from fedmed_strategies.pieces import Arrays
from fedmed_strategies.statistics.base import Patient, Sizes, Statistic, without_few


class Confusion(Statistic):
    """``shares`` ``(C, C)``: sums over patients of the share of class r's voxels that are called class c; ``patients`` ``(C,)``.

    Each row of a patient sums up to 1 where the patient shows the class, else to 0, so that large organs count no more.
    """

    name = "confusion"
    with_model = True

    def zeros(self, sizes: Sizes) -> Arrays:
        """Its arrays without any patient."""
        c = sizes.outputs
        return {"shares": np.zeros((c, c), np.float32), "patients": np.zeros(c, np.float32)}

    def of_patient(self, patient: Patient, sizes: Sizes) -> Arrays:
        """The patient's shares."""
        counts = np.zeros((sizes.outputs, sizes.outputs))
        for case in patient.cases:
            called = patient.probabilities(case).argmax(axis=0).ravel()
            label = case.label.ravel().astype(np.int64)
            known = np.concatenate([[True], case.annotated])
            known = np.concatenate([known, np.zeros(256 - len(known), bool)])
            label = np.where(known[label] | (label == UNLABELLED), label, 0)
            keep = label != UNLABELLED
            np.add.at(counts, (label[keep], called[keep]), 1.0)
        voxels = counts.sum(axis=1)
        shown = voxels > 0
        shares = counts / np.maximum(voxels, 1.0)[:, None]
        return {"shares": shares.astype(np.float32), "patients": shown.astype(np.float32)}

    def releasable(self, sums: Arrays, least_patients: int) -> Arrays:
        """Without rows of few patients."""
        return without_few(sums, "patients", ("shares",), least_patients)

    def sensitivity(self, sizes: Sizes) -> float:
        """Of rows that sum up to 1, and a one for each."""
        return float(np.sqrt(2 * sizes.outputs))
