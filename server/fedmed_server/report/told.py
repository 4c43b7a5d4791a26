"""What the report says of a task's metrics, in words."""

from __future__ import annotations

from fedmed_common.config import Experiment
from fedmed_strategies.presets import recipe_of
from fedmed_strategies.validity import warnings

TASKS_TOLD: dict[str, dict[str, str]] = {
    "segmentation": {
        "headline": "Mean foreground Dice",
        "classes": "Dice counts the {split} patients who show a class; the false positive rate is the share of those who do not, "
        "in whom it was predicted all the same.",
        "matrix": "on the {split} patients who show the class, n of them",
        "few": "those that at least {enough} of these patients show",
        "too_few": "Fewer than {enough} {split} patients",
    },
    "classification": {
        "headline": "Mean AUROC",
        "classes": "A patient's score of a class is the highest over the patient's images. Sensitivity, specificity and F1 are "
        "those of all patients together; AUROC, AUPRC, balanced accuracy and calibration error are the mean of the sites' own, "
        "weighted by their patients.",
        "matrix": "on the {split} patients, n of whom show the class",
        "few": "those that at least {enough} of these patients show, and at least {enough} do not",
        "too_few": "Fewer than {enough} {split} patients with it, or without it",
    },
}
"""By task; ``{split}`` and ``{enough}`` are filled in."""


def caveats(experiment: Experiment) -> list[str]:
    """What a reader has to know who compares these scores with others."""
    told = []
    if experiment.model.prompted:
        told.append(
            "The network was prompted from the reference label: its scores do not compare with those of one that finds things "
            "itself."
        )
    if experiment.task.crf is not None:
        told.append(
            "Scores are of the network's probabilities after the conditional random field of [task.crf]."
        )
    recipe = recipe_of(experiment)
    told += [sentence[0].upper() + sentence[1:] + "." for sentence in warnings(recipe, experiment)]
    return told
