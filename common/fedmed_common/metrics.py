"""Metrics that carry their weight, so that no average of them can be wrong; and which ones a task has.

``SCORES`` is the one place that a metric is declared in: what a site may report, what the gate lets in, which is better and what
the report calls it are all read from there.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Mean:
    """A weighted sum on its way to becoming a mean: add first, divide last.

    ``total`` is the sum of the values, ``weight`` how many (patients, steps) went into it.
    """

    total: float
    weight: float

    def __add__(self, other: Mean) -> Mean:
        return Mean(self.total + other.total, self.weight + other.weight)

    @property
    def value(self) -> float:
        """The mean; NaN where nothing went into it."""
        return self.total / self.weight if self.weight else math.nan


Metrics = dict[str, Mean]
"""By name: ``loss``, or ``<metric>/<class>`` as ``dice/liver``. Weights count patients, or steps for a training loss."""


def merge(parts: Iterable[Mapping[str, Mean]]) -> Metrics:
    """Add metrics name by name, in the given order."""
    merged: Metrics = {}
    for part in parts:
        for name, mean in part.items():
            merged[name] = merged[name] + mean if name in merged else mean
    return merged


def class_mean(metrics: Mapping[str, Mean], prefix: str) -> float:
    """The unweighted mean over classes of ``prefix/<class>``, or ``prefix`` itself; NaN where no class has a value."""
    values = [
        mean.value for name, mean in metrics.items() if name.partition("/")[0] == prefix and mean.weight
    ]
    return sum(values) / len(values) if values else math.nan


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """What is known of a metric of held-out patients before any is measured.

    ``over``: whom its weight counts: patients who show the class, those who do not, or all who were looked at. ``paired``: it
    tells of patients who show the class and of those who do not, so a site keeps it where either are few. ``share``: its values
    lie within 0 and 1. ``adds_up``: what it is of several patients is the sum of what it is of each. ``needs``: the setting of
    ``[task]`` without which it is not measured.
    """

    name: str
    title: str
    over: Literal["present", "absent", "all"]
    better: Literal["higher", "lower"] = "higher"
    paired: bool = False
    by_class: bool = True
    share: bool = True
    adds_up: bool = False
    picks: bool = True
    digits: int = 3
    needs: Literal["", "surface_metrics", "single"] = ""


def _paired(name: str, title: str, over: Literal["present", "absent", "all"] = "all") -> Score:
    return Score(name=name, title=title, over=over, paired=True, adds_up=over != "all")


SCORES: dict[str, tuple[Score, ...]] = {
    "segmentation": (
        Score(name="dice", title="Dice", over="present", adds_up=True),
        Score(
            name="hd95_mm",
            title="HD95 (mm)",
            over="present",
            better="lower",
            share=False,
            digits=1,
            needs="surface_metrics",
        ),
        Score(name="nsd", title="NSD", over="present", adds_up=True, digits=2, needs="surface_metrics"),
        Score(
            name="false_positive",
            title="False positives",
            over="absent",
            better="lower",
            adds_up=True,
            picks=False,
        ),
    ),
    "classification": (
        _paired("auroc", "AUROC"),
        _paired("auprc", "AUPRC"),
        _paired("sensitivity", "Sensitivity", "present"),
        _paired("specificity", "Specificity", "absent"),
        _paired("balanced_accuracy", "Balanced accuracy"),
        _paired("f1", "F1"),
        Score(name="calibration_error", title="Calibration error", over="all", better="lower", paired=True),
        Score(name="accuracy", title="Accuracy", over="all", by_class=False, adds_up=True, needs="single"),
    ),
}
"""By task, the headline first: the one that picks the best round where the experiment names none."""


def scores_of(task: str, settings: frozenset[str]) -> tuple[Score, ...]:
    """The metrics of a task with these of its settings on: ``surface_metrics``, ``single``. None for a task that is not known."""
    return tuple(score for score in SCORES.get(task, ()) if not score.needs or score.needs in settings)


def score_called(name: str) -> Score | None:
    """The declaration of a metric, also of one with a class behind it, as ``dice/liver``."""
    metric = name.partition("/")[0]
    return next((score for scores in SCORES.values() for score in scores if score.name == metric), None)
