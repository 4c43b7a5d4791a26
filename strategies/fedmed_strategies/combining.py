"""How a round's answers become new parameters: the kinds of pieces that work at the server alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np

from fedmed_common.params import WeightedMean, is_statistic
from fedmed_strategies.pieces import Answer, Arrays, Memory, Piece, Scene, Site


class Weigher(Protocol):
    """How much each answer of a round counts, one answer at a time."""

    def weigh(self, answer: Answer) -> float:
        """What its update is multiplied by before it is added."""

    def total(self) -> float:
        """What the sum is divided by."""


class Weights(Piece):
    """How much each site's update counts."""

    equal: ClassVar[bool] = False
    """Whether all sites count alike, whatever they say."""

    def begin(self, scene: Scene, memory: Memory) -> Weigher:
        """The weigher of one round."""
        raise NotImplementedError


class Filter(Piece):
    """Looks at all updates of a round together, and gives those that are to be combined."""

    sees_each_update: ClassVar[bool] = True

    def keep(self, updates: Sequence[Weighed]) -> list[Weighed]:
        """The updates that go on."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True, kw_only=True)
class Weighed:
    """An update, what it is multiplied by, and how much of that its age has left: 1 where it is not stale."""

    delta: Arrays
    weight: float
    site: Site
    freshness: float = 1.0


class Gathering(Protocol):
    """Updates on their way to becoming one."""

    def add(self, update: Weighed) -> None:
        """Add one, in the roster's order."""

    def result(self, total: float) -> Arrays:
        """What they become. ``total``: what a sum of weighted updates is divided by."""


class Aggregator(Piece):
    """How updates become one."""

    def begin(self, template: Arrays, scene: Scene, memory: Memory) -> Gathering:
        """An empty gathering."""
        raise NotImplementedError


class ServerOptimizer(Piece):
    """How the combined update moves the global model."""

    def step(self, parameters: Arrays, update: Arrays, memory: Memory, scene: Scene) -> tuple[Arrays, Memory]:
        """New parameters, and what is kept for the next step."""
        raise NotImplementedError


class MeanGathering:
    """The weighted mean, one update in memory at a time."""

    def __init__(self, template: Arrays) -> None:
        self._mean, self._weights = WeightedMean(template), 0.0

    def add(self, update: Weighed) -> None:
        """Add one."""
        self._mean.add(update.delta, update.weight)
        self._weights += update.weight

    def result(self, total: float) -> Arrays:
        """The sum of the weighted updates over ``total``; of running statistics the mean."""
        mean = self._mean.mean()
        if total == self._weights:
            return mean
        scale = np.float32(self._weights / total)
        return {name: array if is_statistic(name) else array * scale for name, array in mean.items()}
