"""RFA: the geometric median of the updates."""

from __future__ import annotations

import math
from typing import Annotated

import numpy as np
from pydantic import Field

from fedmed_common.fields import Positive
from fedmed_common.params import norm
from fedmed_strategies.aggregators.robust import Together, shares, weighted
from fedmed_strategies.combining import Aggregator, Gathering, Weighed
from fedmed_strategies.pieces import Arrays, Memory, Scene


class GeometricMedian(Aggregator):
    """Weiszfeld's iterations v <- sum_k b_k delta_k / sum_k b_k, with b_k = p_k / max(nu, |v - delta_k|), from the mean on.

    Each is a weighted sum, so that it is the one robust rule that could be done as repeated secure sums.
    """

    name = "geometric_median"
    source = (
        "Pillutla et al. 2022, 'Robust aggregation for federated learning', IEEE Transactions on Signal Processing, "
        "algorithm 2"
    )
    sees_each_update = True
    nu: Positive = 1e-5
    iterations: Annotated[int, Field(ge=1, le=1000)] = 4

    def begin(self, template: Arrays, scene: Scene, memory: Memory) -> Gathering:
        """An empty gathering."""
        return Together(self._combine)

    def _combine(self, updates: list[Weighed], parts: list[Arrays]) -> Arrays:
        share = shares(updates)
        middle = weighted(parts, share)
        for _ in range(self.iterations):
            away = [norm({name: part[name] - middle[name] for name in part}) for part in parts]
            near = share / np.maximum(self.nu, away)
            before, middle = middle, weighted(parts, near / near.sum())
            if math.isclose(norm({name: middle[name] - before[name] for name in middle}), 0.0, abs_tol=1e-12):
                break
        return {name: array.astype(np.float32) for name, array in middle.items()}
