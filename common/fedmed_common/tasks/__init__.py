"""What a network learns: loss, inference and scores, one task a file. A new one is a class and a line in ``TASKS``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from fedmed_common.config import Experiment
from fedmed_common.lookup import load
from fedmed_common.metrics import Mean, Metrics, merge

if TYPE_CHECKING:
    from fedmed_common.tasks.segmentation import Segmentation

TASKS: dict[str, str] = {"segmentation": "fedmed_common.tasks.segmentation:Segmentation"}

LOSSES: dict[str, str] = {
    "dice_ce": "fedmed_common.tasks.losses:dice_ce",
    "dice": "fedmed_common.tasks.losses:dice",
    "cross_entropy": "fedmed_common.tasks.losses:cross_entropy",
}
"""What ``task.loss`` can name."""


def build_task(experiment: Experiment) -> Segmentation:
    """The experiment's task.

    Raises:
        ConfigError: no task, or no loss, of this name.
    """
    task: Segmentation = load(TASKS, experiment.task.name, field="task.name")(experiment)
    return task


def patient_mean(cases: Iterable[Metrics]) -> Metrics:
    """One patient's metrics out of those of the patient's cases: the mean of each, with weight 1.

    A metric that only some cases have, as the Dice of a lesion gone at the follow-up, is the mean over those.
    """
    return {name: Mean(mean.value, 1.0) for name, mean in merge(cases).items() if mean.weight}
