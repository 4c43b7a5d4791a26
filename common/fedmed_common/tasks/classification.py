"""Classification of whole images: which classes does a case show?

``task.labels`` says whether a case may show several or none (a sigmoid for each class) or always one (a softmax). In 3D, and of
photographs, the network sees the whole image at the size of ``data.patch``. A 2D network looks at a volume slice by slice, and
the volume's score is the highest of its slices, so that a finding in one slice is a finding in the case. A patient's score is
the highest of the patient's cases.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedmed_common.config import Experiment
from fedmed_common.lookup import find, load
from fedmed_common.metrics import Mean, Metrics
from fedmed_common.tasks import LABEL_LOSSES, PLAIN, UNDECIDED, Case, Decision, Shaping, supervision
from fedmed_common.tasks.losses import Loss
from fedmed_common.tasks.ranking import auroc, average_precision, calibration_error

_VOXELS_AT_ONCE = {"cpu": 2**20, "cuda": 2**23}


@dataclass(frozen=True, slots=True)
class Prediction:
    """What is kept of a case, or of a patient: per class the probability ``(K,)``, what it shows, and whether that is known."""

    score: NDArray[np.float64]
    present: NDArray[np.bool_]
    annotated: NDArray[np.bool_]


@dataclass(frozen=True)
class Classification:
    """Loss, inference and scores of an experiment.

    ``voxels_at_once``: bounds the slices that a 2D network sees together; absent, what suits the device.

    Raises:
        ConfigError: ``task.loss`` is not in ``LABEL_LOSSES``.
    """

    experiment: Experiment
    voxels_at_once: int | None = None

    def __post_init__(self) -> None:
        find(LABEL_LOSSES[self._labels], self.experiment.task.loss, field="task.loss")

    @property
    def per_sample(self) -> Loss:
        """The experiment's loss, with its settings."""
        settings = self.experiment.task.loss_settings.given()
        loss: Loss = load(LABEL_LOSSES[self._labels], self.experiment.task.loss, field="task.loss")
        return partial(loss, **settings) if settings else loss

    def objective(
        self, model: nn.Module, image: Tensor, target: Tensor, annotated: Tensor, shaping: Shaping = PLAIN
    ) -> Tensor:
        """The loss of what the model makes of a batch; auxiliary heads count by the network's ``output_weights``."""
        loss = shaping.recast(self.per_sample)
        return supervision.objective(loss, model, model(image), image, target, annotated, shaping.extra)

    def measure(
        self, model: nn.Module, case: Case, device: torch.device | str, decision: Decision = UNDECIDED
    ) -> Prediction:
        """The case's probabilities beside what it shows."""
        return Prediction(
            score=self.predict(model, case.image, device),
            present=np.array(case.present, bool),
            annotated=np.array(case.annotated, bool),
        )

    def predict(
        self, model: nn.Module, image_CXYZ: NDArray[np.float32], device: torch.device | str
    ) -> NDArray[np.float64]:
        """Each class's probability ``(K,)``; of a 2D network the highest over the slices, a bounded number of them at once.

        The model lies on ``device`` already; it is in evaluation mode meanwhile and in its own afterwards.
        """
        flat = self.experiment.task.dimensions == 2
        slices = image_CXYZ.shape[3] if flat else 1
        bound = self.voxels_at_once or _VOXELS_AT_ONCE[torch.device(device).type]
        at_once = max(1, bound // (image_CXYZ.size // slices))
        highest = np.zeros(len(self.experiment.task.classes))
        training = model.training
        model.eval()
        try:
            for first in range(0, slices, at_once):
                part = image_CXYZ[..., first : first + at_once] if flat else image_CXYZ[..., None]
                batch = torch.from_numpy(np.array(np.moveaxis(part, -1, 0), order="C")).to(device)
                highest = np.maximum(highest, self._probability(model, batch).max(axis=0))
        finally:
            model.train(training)
        return highest

    def summarise(self, patients: Iterable[Sequence[Prediction]]) -> Metrics:
        """A site's metrics over its patients, each of whom counts once.

        Of each class with ``N`` annotated patients: ``sensitivity``, ``specificity`` and ``f1`` are sums, so that those of
        several sites add up to the exact value of all; the others are the site's own with weight ``N``, and what several sites
        make of them is the mean over patients of the sites' values. A class that all, or none, of the patients show has no
        ``auroc`` and no ``balanced_accuracy``. Predicted is what has a probability of 0.5, or with single labels the highest.
        """
        people = [patient_prediction(cases) for cases in patients]
        if not people:
            return {}
        score, present, annotated = (
            np.stack([getattr(person, field) for person in people])
            for field in ("score", "present", "annotated")
        )
        called = self._called(score)
        metrics: Metrics = {}
        for number, name in enumerate(self.experiment.task.classes):
            known = annotated[:, number]
            if known.any():
                values = _of_class(score[known, number], called[known, number], present[known, number])
                metrics |= {f"{metric}/{name}": mean for metric, mean in values.items() if mean.weight}
        if self._labels == "single":
            metrics["accuracy"] = Mean(float((called & present).any(axis=1).sum()), float(len(people)))
        return metrics

    @property
    def _labels(self) -> str:
        return self.experiment.task.labels

    def _called(self, score_NK: NDArray[np.float64]) -> NDArray[np.bool_]:
        if self._labels == "multi":
            return score_NK >= 0.5
        return np.asarray(np.arange(score_NK.shape[1]) == score_NK.argmax(axis=1)[:, None])

    @torch.inference_mode()
    def _probability(self, model: nn.Module, batch: Tensor) -> NDArray[np.float64]:
        logits = model(batch).double()
        probability = logits.sigmoid() if self._labels == "multi" else logits.softmax(1)
        return np.asarray(probability.cpu().numpy())


def patient_prediction(cases: Sequence[Prediction]) -> Prediction:
    """Several cases as one patient: what any of them shows, and each class's highest score where it was looked for."""
    annotated_CK = np.stack([case.annotated for case in cases])
    counts_CK = annotated_CK | ~annotated_CK.any(axis=0)
    return Prediction(
        score=np.where(counts_CK, np.stack([case.score for case in cases]), 0.0).max(axis=0),
        present=np.asarray((np.stack([case.present for case in cases]) & annotated_CK).any(axis=0)),
        annotated=np.asarray(annotated_CK.any(axis=0)),
    )


def _of_class(
    score: NDArray[np.float64], called: NDArray[np.bool_], truth: NDArray[np.bool_]
) -> dict[str, Mean]:
    """One class's metrics; those that are not defined have the weight 0."""
    people, positives = truth.size, int(truth.sum())
    negatives = people - positives
    hits, rejected = int((called & truth).sum()), int((~called & ~truth).sum())
    sensitivity, specificity = Mean(hits, positives), Mean(rejected, negatives)
    wrong = people - hits - rejected
    both = people if positives and negatives else 0
    return {
        "auroc": _of_site(auroc(truth, score), both),
        "auprc": _of_site(average_precision(truth, score), people if positives else 0),
        "sensitivity": sensitivity,
        "specificity": specificity,
        "balanced_accuracy": _of_site((sensitivity.value + specificity.value) / 2, both),
        "f1": Mean(hits, hits + wrong / 2),
        "calibration_error": _of_site(calibration_error(truth, score), people),
    }


def _of_site(value: float, weight: int) -> Mean:
    return Mean(value * weight, weight) if weight else Mean(0.0, 0.0)
