"""A simulated run beside its baselines: from their metrics to rows that a template can lay out. Nothing here knows HTML."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fedmed_common.metrics import Mean, Metrics
from fedmed_server.report.tables import ENOUGH_PATIENTS

_DIGITS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """One model's Dice. ``best``: the highest of its row as printed, and not of all columns alike."""

    value: float | None
    patients: float = 0.0
    best: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparedClass:
    """One class, a score for each model. ``counted``: in the mean, as all models measured the same number, and enough."""

    name: str
    scores: tuple[Score, ...]
    counted: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """``models`` are the columns. ``means``: over the counted classes; empty where there is none."""

    models: tuple[str, ...]
    classes: tuple[ComparedClass, ...]
    means: tuple[Score, ...]

    @property
    def counted(self) -> tuple[ComparedClass, ...]:
        """The classes that are in the mean."""
        return tuple(row for row in self.classes if row.counted)

    @property
    def left_out(self) -> tuple[ComparedClass, ...]:
        """The classes that are not."""
        return tuple(row for row in self.classes if not row.counted)


def compare(models: Mapping[str, Metrics], classes: Sequence[str]) -> Comparison | None:
    """Dice by class and model, the classes in the given order; None where no model was compared."""
    if not models:
        return None
    rows = tuple(_row(name, [metrics.get(f"dice/{name}") for metrics in models.values()]) for name in classes)
    columns = list(zip(*(row.scores for row in rows if row.counted), strict=True))
    means = [sum(score.value or 0.0 for score in column) / len(column) for column in columns]
    return Comparison(
        models=tuple(models),
        classes=rows,
        means=tuple(Score(value=mean, best=_is_best(mean, means)) for mean in means),
    )


def _row(name: str, dice: Sequence[Mean | None]) -> ComparedClass:
    values = [mean.value for mean in dice if mean is not None and math.isfinite(mean.value)]
    numbers = {mean.weight for mean in dice if mean is not None}
    counted = len(values) == len(dice) and len(numbers) == 1 and min(numbers) >= ENOUGH_PATIENTS
    scores = tuple(
        Score(value=mean.value, patients=mean.weight, best=counted and _is_best(mean.value, values))
        if mean is not None and math.isfinite(mean.value)
        else Score(value=None)
        for mean in dice
    )
    return ComparedClass(name=name, scores=scores, counted=counted)


def _is_best(value: float, values: Sequence[float]) -> bool:
    printed = {round(one, _DIGITS) for one in values}
    return len(printed) > 1 and round(value, _DIGITS) == max(printed)
