"""What robust rules have in common: all updates in memory, and running statistics by their median."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from fedmed_common.params import is_statistic
from fedmed_strategies.combining import Weighed
from fedmed_strategies.pieces import Arrays

Combine = Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[np.float64]]
"""(stacked values ``(n, N)``, shares ``(n,)``) -> ``(N,)``."""


class Together:
    """Keeps all updates, and combines them when all are there."""

    def __init__(self, combine: Callable[[list[Weighed], list[Arrays]], Arrays]) -> None:
        self._combine = combine
        self._updates: list[Weighed] = []

    def add(self, update: Weighed) -> None:
        """Keep one."""
        self._updates.append(update)

    def result(self, total: float) -> Arrays:
        """What they become: statistics by their median, everything else by the rule; names in the template's order."""
        names = list(self._updates[0].delta)
        learned = [name for name in names if not is_statistic(name)]
        parts = [{name: update.delta[name] for name in learned} for update in self._updates]
        combined = self._combine(self._updates, parts)
        return {name: combined[name] if name in combined else self._median(name) for name in names}

    def _median(self, name: str) -> NDArray[np.float32]:
        stacked = np.stack([update.delta[name] for update in self._updates])
        return np.median(stacked, axis=0).astype(np.float32)


def by_coordinate(rule: Callable[[NDArray[np.float32]], NDArray[np.float64]]) -> Together:
    """A rule for each number by itself: ``(n, *shape) -> (*shape)``."""

    def combine(_updates: list[Weighed], parts: list[Arrays]) -> Arrays:
        return {name: rule(np.stack([part[name] for part in parts])).astype(np.float32) for name in parts[0]}

    return Together(combine)


def shares(updates: list[Weighed]) -> NDArray[np.float64]:
    """The weights over their sum."""
    weights = np.array([update.weight for update in updates])
    return np.asarray(weights / weights.sum())


def weighted(parts: list[Arrays], weights: NDArray[np.float64]) -> Arrays:
    """The sum of the parts, each times its weight, added in double precision."""
    return {
        name: sum(w * part[name].astype(np.float64) for w, part in zip(weights, parts, strict=True))
        for name in parts[0]
    }
