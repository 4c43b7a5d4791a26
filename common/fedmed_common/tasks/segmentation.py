"""Semantic segmentation in 2D and 3D: every voxel is background or one of the classes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedmed_common.config import CRF, Experiment
from fedmed_common.lookup import find, load
from fedmed_common.metrics import Mean, Metrics, merge
from fedmed_common.site_config import UNLABELLED
from fedmed_common.tasks import LOSSES, PLAIN, UNDECIDED, Case, Decision, Shaping, patient_mean, supervision
from fedmed_common.tasks.losses import Loss, seen
from fedmed_common.tasks.sliding_window import Predictor, Windows, sliding_argmax, sliding_probabilities
from fedmed_common.tasks.surface import diagonal_mm, surface_distances

_VOXELS_AT_ONCE = {"cpu": 2**18, "cuda": 2**21}


@dataclass(frozen=True)
class Segmentation:
    """Loss, inference and scores of an experiment.

    ``overlap``: share of a sliding window that its neighbour covers too. ``voxels_at_once``: bounds the windows that the network
    sees together; absent, what suits the device: on a CPU, larger batches fall out of its cache and are slower.

    Raises:
        ConfigError: ``task.loss`` is not in ``LOSSES``.
    """

    experiment: Experiment
    overlap: float = 0.25
    voxels_at_once: int | None = None

    def __post_init__(self) -> None:
        find(LOSSES, self.experiment.task.loss, field="task.loss")

    @property
    def per_sample(self) -> Loss:
        """The experiment's loss, with its settings."""
        settings = self.experiment.task.loss_settings.given()
        loss: Loss = load(LOSSES, self.experiment.task.loss, field="task.loss")
        return partial(loss, **settings) if settings else loss

    def loss(self, logits: Tensor, label: Tensor, annotated: Tensor) -> Tensor:
        """The mean over the batch of each sample's own loss, in float32 whatever the logits are.

        logits ``(B, 1 + K, *S)``; label int64 ``(B, *S)``; annotated bool ``(B, K)``, best left on the CPU.
        """
        return supervision.per_sample(self.per_sample, logits, label, annotated).mean()

    def objective(
        self, model: nn.Module, image: Tensor, target: Tensor, annotated: Tensor, shaping: Shaping = PLAIN
    ) -> Tensor:
        """The loss of what the model makes of a batch, of all its outputs where it gives several."""
        outputs = _outputs(model, image, target, annotated)
        return supervision.objective(
            shaping.recast(self.per_sample), model, outputs, image, target, annotated, shaping.extra
        )

    def measure(
        self, model: nn.Module, case: Case, device: torch.device | str, decision: Decision = UNDECIDED
    ) -> Metrics:
        """The scores of one case."""
        prediction = self.decided(model, case, device, decision)
        return self.score(prediction, case.label, case.annotated, case.spacing_mm)

    def decided(
        self, model: nn.Module, case: Case, device: torch.device | str, decision: Decision
    ) -> NDArray[np.uint8]:
        """The label map of a case as ``predict`` has it, with what the decision says."""
        least = decision.get("least_mm3")
        voxels = None if least is None else least / float(np.prod(case.spacing_mm))
        return self.predict(model, case.image, device, looked_for(case), voxels)

    def summarise(self, patients: Iterable[Sequence[Metrics]]) -> Metrics:
        """Sums over patients; a patient with several cases counts once."""
        return merge(patient_mean(cases) for cases in patients)

    def predict(
        self,
        model: nn.Module,
        image: NDArray[np.float32],
        device: torch.device | str,
        reference: NDArray[np.uint8] | None = None,
        least_voxels: NDArray[np.floating[Any]] | None = None,
    ) -> NDArray[np.uint8]:
        """The label map ``(X, Y, Z)`` of an image ``(C, X, Y, Z)``, which may be a memory map.

        The model lies on ``device`` already; it is in evaluation mode meanwhile and in its own afterwards. In a 2D task each
        slice across z is on its own. Autocast, where wanted, is around the call. ``reference``: the label map, from which an
        interactive network, as SAM, gets its prompts window by window; no other network sees it. With ``task.crf`` the classes'
        probabilities of the whole image are held, and refined before one is chosen; also with ``least_voxels`` ``(K,)``, where
        voxels of a class of which there are fewer go to the next most likely one.
        """
        crf = self.experiment.task.crf
        if crf is None and least_voxels is None:
            return self._slide(sliding_argmax, model, image, device, reference)
        found = self._slide(sliding_probabilities, model, image, device, reference)
        if crf is not None:
            found = _refined(found, image, crf, in_3d=len(self.experiment.data.patch) == 3)
        label: NDArray[np.uint8] = found.argmax(0).astype(np.uint8)
        return label if least_voxels is None else without_little(label, found, least_voxels)

    def probabilities(
        self, model: nn.Module, image: NDArray[np.float32], device: torch.device | str
    ) -> NDArray[np.float32]:
        """The probability of each class at each voxel ``(1 + K, X, Y, Z)``, as ``predict`` decides by; without ``task.crf``."""
        found: NDArray[np.float32] = self._slide(sliding_probabilities, model, image, device, None)
        return found

    def _slide(
        self,
        slide: Callable[..., NDArray[Any]],
        model: nn.Module,
        image: NDArray[np.float32],
        device: torch.device | str,
        reference: NDArray[np.uint8] | None,
    ) -> NDArray[Any]:
        x, y, *z = self.experiment.data.patch
        training = model.training
        predictor: Predictor = model
        shown = image
        if reference is not None and hasattr(model, "prompt"):
            predictor = _prompted(model)
            shown = np.concatenate([image, reference[None].astype(np.float32)])
        windows = Windows(
            size=(x, y, z[0] if z else 1),
            classes=1 + len(self.experiment.task.classes),
            overlap=self.overlap,
            voxels_at_once=self.voxels_at_once or _VOXELS_AT_ONCE[torch.device(device).type],
        )
        model.eval()
        try:
            return slide(predictor if z else _by_slice(predictor), shown, windows, device)
        finally:
            model.train(training)

    def score(
        self,
        prediction: NDArray[np.uint8],
        label: NDArray[np.uint8],
        annotated: Sequence[bool],
        spacing_mm: Sequence[float],
    ) -> Metrics:
        """One case's metrics, each of weight 1; ``patient_mean`` makes a patient's out of several.

        For each annotated class that the label shows: ``dice/<class>``; with ``task.surface_metrics`` also ``hd95_mm/<class>``
        and ``nsd/<class>``, the image's diagonal and 0 where nothing was predicted. For each that it does not show:
        ``false_positive/<class>``, 1 where any voxel was predicted. An unannotated class has none, and its predicted voxels
        count for nothing; so do unlabelled voxels. Label maps are ``(X, Y, Z)``.
        """
        metrics: Metrics = {}
        labelled = label != UNLABELLED
        for value, (name, known) in enumerate(
            zip(self.experiment.task.classes, annotated, strict=True), start=1
        ):
            if not known:
                continue
            predicted, truth = (prediction == value) & labelled, label == value
            if truth.any():
                values = {"dice": _dice(predicted, truth)}
                if self.experiment.task.surface_metrics:
                    values |= self._surface(predicted, truth, spacing_mm)
            else:
                values = {"false_positive": float(predicted.any())}
            metrics |= {f"{metric}/{name}": Mean(result, 1.0) for metric, result in values.items()}
        return metrics

    def _surface(
        self, predicted: NDArray[np.bool_], truth: NDArray[np.bool_], spacing_mm: Sequence[float]
    ) -> dict[str, float]:
        if not predicted.any():
            return {"hd95_mm": diagonal_mm(truth.shape, spacing_mm), "nsd": 0.0}
        distances = surface_distances(predicted, truth, spacing_mm)
        tolerance_mm = self.experiment.task.nsd_tolerance_mm
        return {"hd95_mm": distances.hausdorff_95(), "nsd": distances.surface_dice(tolerance_mm)}


def _dice(predicted: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float:
    total = np.count_nonzero(predicted) + np.count_nonzero(truth)
    return float(2 * np.count_nonzero(predicted & truth) / total)


def looked_for(case: Case) -> NDArray[np.uint8]:
    """The case's label map without the classes that are not annotated, which it may show all the same."""
    hidden = [value for value, known in enumerate(case.annotated, start=1) if not known]
    return np.where(np.isin(case.label, hidden), np.uint8(0), case.label) if hidden else case.label


def _outputs(model: nn.Module, image: Tensor, target: Tensor, annotated: Tensor | None = None) -> Any:
    """What the model makes of a batch; of an interactive network, with prompts from the reference, for annotated classes."""
    prompt = supervision.attribute(model, "prompt")
    if prompt is None:
        return model(image)
    shown = target if annotated is None else seen(target, annotated)
    return model(image, prompt(shown.where(shown != UNLABELLED, 0)))


def _prompted(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """An interactive model on windows whose last channel is the reference."""

    def predictor(window: Tensor) -> Tensor:
        logits: Tensor = _outputs(model, window[:, :-1], window[:, -1].long())
        return logits

    return predictor


def _refined(
    probabilities_KXYZ: NDArray[np.float32], image_CXYZ: NDArray[np.float32], settings: CRF, *, in_3d: bool
) -> NDArray[np.float32]:
    """The probabilities after the conditional random field, of the whole volume or of each slice."""
    from fedmed_common.tasks.crf import refine, spans_of

    if in_3d:
        refined = refine(probabilities_KXYZ, image_CXYZ, settings)
    else:
        spans = spans_of(image_CXYZ)
        slices = range(image_CXYZ.shape[-1])
        each = [refine(probabilities_KXYZ[..., z], image_CXYZ[..., z], settings, spans) for z in slices]
        refined = np.stack(each, -1)
    return refined


def without_little(
    label: NDArray[np.uint8], probabilities_KXYZ: NDArray[np.float32], least_voxels: NDArray[np.floating[Any]]
) -> NDArray[np.uint8]:
    """The label map without classes of which there is too little; their voxels go to the next most likely class that stays."""
    voxels = np.bincount(label.ravel(), minlength=len(probabilities_KXYZ))[1:]
    little = np.flatnonzero((voxels > 0) & (voxels < least_voxels)) + 1
    if not len(little):
        return label
    left = probabilities_KXYZ.copy()
    left[little] = -1.0
    return np.where(np.isin(label, little), left.argmax(0), label).astype(np.uint8)


def _by_slice(model: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """A 2D model on windows one voxel deep."""

    def predictor(window_BCXY1: Tensor) -> Tensor:
        logits: Tensor = model(window_BCXY1[..., 0])
        return logits[..., None]

    return predictor
