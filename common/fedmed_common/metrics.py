"""Metrics that carry their weight, so that no average of them can be wrong."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass


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
    """The unweighted mean over classes of ``prefix/<class>``; NaN where no class has a value."""
    values = [mean.value for name, mean in metrics.items() if name.startswith(f"{prefix}/") and mean.weight]
    return sum(values) / len(values) if values else math.nan
