"""What a network learns: loss, inference and scores, one task a file. A new one is a class and a line in ``TASKS``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from fedmed_common.config import Experiment
from fedmed_common.config import Task as TaskSettings
from fedmed_common.lookup import load
from fedmed_common.metrics import Mean, Metrics, merge

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import Tensor
    from torch.nn import Module

    from fedmed_common.tasks.losses import Loss

TASKS: dict[str, str] = {
    "segmentation": "fedmed_common.tasks.segmentation:Segmentation",
    "classification": "fedmed_common.tasks.classification:Classification",
}

LOSSES: dict[str, str] = {
    "dice_ce": "fedmed_common.tasks.losses:dice_ce",
    "dice": "fedmed_common.tasks.losses:dice",
    "cross_entropy": "fedmed_common.tasks.losses:cross_entropy",
    "generalised_dice": "fedmed_common.tasks.losses_overlap:generalised_dice",
    "tversky": "fedmed_common.tasks.losses_overlap:tversky",
    "batch_dice": "fedmed_common.tasks.losses_overlap:batch_dice",
    "batch_dice_ce": "fedmed_common.tasks.losses_overlap:batch_dice_ce",
    "focal": "fedmed_common.tasks.losses_voxelwise:focal",
    "dice_focal": "fedmed_common.tasks.losses_voxelwise:dice_focal",
    "sparse_ce": "fedmed_common.tasks.losses_voxelwise:sparse_ce",
    "boundary": "fedmed_common.tasks.losses_border:boundary",
    "dice_boundary": "fedmed_common.tasks.losses_border:dice_boundary",
    "border_ce": "fedmed_common.tasks.losses_border:border_ce",
}
"""What ``task.loss`` of a segmentation can name."""

LABEL_LOSSES: dict[str, dict[str, str]] = {
    "multi": {
        "cross_entropy": "fedmed_common.tasks.label_losses:binary_cross_entropy",
        "focal": "fedmed_common.tasks.label_losses:binary_focal",
    },
    "single": {
        "cross_entropy": "fedmed_common.tasks.label_losses:cross_entropy",
        "focal": "fedmed_common.tasks.label_losses:focal",
    },
}
"""What ``task.loss`` of a classification can name, by ``task.labels``."""


def losses_of(task: TaskSettings) -> dict[str, str]:
    """What ``task.loss`` can name."""
    return LABEL_LOSSES[task.labels] if task.name == "classification" else LOSSES


class Case(Protocol):
    """What a task looks at in one annotated image; shapes as in ``fedmed_client.data.cohort.Case``."""

    @property
    def image(self) -> NDArray[np.float32]: ...
    @property
    def label(self) -> NDArray[np.uint8]: ...
    @property
    def annotated(self) -> tuple[bool, ...]: ...
    @property
    def present(self) -> tuple[bool, ...]: ...
    @property
    def spacing_mm(self) -> tuple[float, float, float]: ...


Extra = Callable[["Tensor", Any, "Tensor", "Tensor"], "Tensor"]
"""``(image, outputs, target, annotated) -> (B,)``: a term for each sample."""


@dataclass(frozen=True, slots=True)
class Shaping:
    """What a strategy makes of a task's loss: another one out of it, and terms besides."""

    recast: Callable[[Loss], Loss] = lambda loss: loss
    extra: Extra | None = None


PLAIN = Shaping()
"""The task's loss as it is."""


Decision = Mapping[str, "NDArray[np.float32]"]
"""How a model's output becomes a prediction, where it says more than its weights do. ``least_mm3`` ``(K,)``: in a
segmentation, less than so much of a class in a case is none."""

UNDECIDED: Decision = {}


class Task(Protocol):
    """What is learned: a loss for training, and measurements of a trained network.

    ``target``: of segmentation a label map int64 ``(B, *S)``, of classification 0 or 1 int64 ``(B, K)``. ``annotated``: bool
    ``(B, K)``, best left on the CPU.
    """

    def objective(
        self, model: Module, image: Tensor, target: Tensor, annotated: Tensor, shaping: Shaping = PLAIN
    ) -> Tensor:
        """The mean over the batch of each sample's own loss, as a scalar in float32: what training makes small."""

    def measure(
        self, model: Module, case: Case, device: torch.device | str, decision: Decision = UNDECIDED
    ) -> Any:
        """What is kept of one case for ``summarise``. The model lies on ``device`` already, in evaluation mode."""

    def summarise(self, patients: Iterable[Sequence[Any]]) -> Metrics:
        """A site's metrics from the measurements of its cases, those of one patient together. Weights count patients."""


def build_task(experiment: Experiment) -> Task:
    """The experiment's task.

    Raises:
        ConfigError: no task, or no loss, of this name.
    """
    task: Task = load(TASKS, experiment.task.name, field="task.name")(experiment)
    return task


def patient_mean(cases: Iterable[Metrics]) -> Metrics:
    """One patient's metrics out of those of the patient's cases: the mean of each, with weight 1.

    A metric that only some cases have, as the Dice of a lesion gone at the follow-up, is the mean over those.
    """
    return {name: Mean(mean.value, 1.0) for name, mean in merge(cases).items() if mean.weight}
