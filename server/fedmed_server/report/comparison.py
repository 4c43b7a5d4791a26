"""A simulated run beside its baselines: from their metrics to rows that a template can lay out. Nothing here knows HTML."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fedmed_common.metrics import SCORES, Metrics
from fedmed_common.metrics import Score as Measure
from fedmed_server.report.tables import groups

_DIGITS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """One model's leading metric. ``best``: the highest of its row as printed, and not of all columns alike."""

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


def compare(
    models: Mapping[str, Metrics], classes: Sequence[str], scores: Sequence[Measure] = SCORES["segmentation"]
) -> Comparison | None:
    """The first of ``scores`` by class and model, the classes in the given order; None where no model was compared."""
    if not models:
        return None
    rows = tuple(_row(name, list(models.values()), scores) for name in classes)
    columns = list(zip(*(row.scores for row in rows if row.counted), strict=True))
    means = [sum(score.value or 0.0 for score in column) / len(column) for column in columns]
    return Comparison(
        models=tuple(models),
        classes=rows,
        means=tuple(Score(value=mean, best=_is_best(mean, means)) for mean in means),
    )


def _row(name: str, models: Sequence[Metrics], measures: Sequence[Measure]) -> ComparedClass:
    leads = [metrics.get(f"{measures[0].name}/{name}") for metrics in models]
    behind = [groups(metrics, name, measures) for metrics in models]
    values = [mean.value for mean in leads if mean is not None and math.isfinite(mean.value)]
    counted = len(values) == len(leads) and len(set(behind)) == 1 and behind[0].enough
    scores = tuple(
        Score(value=mean.value, patients=group.showing, best=counted and _is_best(mean.value, values))
        if mean is not None and math.isfinite(mean.value)
        else Score(value=None)
        for mean, group in zip(leads, behind, strict=True)
    )
    return ComparedClass(name=name, scores=scores, counted=counted)


def _is_best(value: float, values: Sequence[float]) -> bool:
    printed = {round(one, _DIGITS) for one in values}
    return len(printed) > 1 and round(value, _DIGITS) == max(printed)
