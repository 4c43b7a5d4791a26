"""Centred clipping: the mean of the updates, each drawn to the last one's result where it is far from it."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from pydantic import Field

from fedmed_common.fields import Positive
from fedmed_common.params import is_statistic, norm
from fedmed_strategies.aggregators.robust import Together, shares
from fedmed_strategies.combining import Aggregator, Gathering, Weighed
from fedmed_strategies.pieces import Arrays, Done, Memory, Scene, own, under


class CentredClipping(Aggregator):
    """v <- v + sum_k p_k (delta_k - v) min(1, radius / |delta_k - v|), from the last round's result on; at first from 0."""

    name = "centred_clipping"
    source = "Karimireddy et al. 2021, 'Learning from history for Byzantine robust optimization', ICML, algorithm 2"
    sees_each_update = True
    radius: Positive = 1.0
    iterations: Annotated[int, Field(ge=1, le=1000)] = 3

    def begin(self, template: Arrays, scene: Scene, memory: Memory) -> Gathering:
        """An empty gathering."""
        centre = own(memory, f"{self.name}/centre")

        def combine(updates: list[Weighed], parts: list[Arrays]) -> Arrays:
            middle = {
                name: centre.get(name, np.zeros(array.shape)).astype(np.float64)
                for name, array in parts[0].items()
            }
            share = shares(updates)
            for _ in range(self.iterations):
                middle = self._moved(middle, parts, share.tolist())
            return {name: array.astype(np.float32) for name, array in middle.items()}

        return Together(combine)

    def settle(self, done: Done) -> tuple[Arrays, Memory]:
        """The centre of the next round."""
        learned = {name: array for name, array in done.step.items() if not is_statistic(name)}
        return done.parameters, under(f"{self.name}/centre", learned)

    def _moved(self, middle: Memory, parts: list[Arrays], share: list[float]) -> Memory:
        total = {name: array.copy() for name, array in middle.items()}
        for weight, part in zip(share, parts, strict=True):
            away = {name: part[name] - middle[name] for name in part}
            length = norm(away)
            scale = weight * (min(1.0, self.radius / length) if length else 1.0)
            for name, array in away.items():
                total[name] += scale * array
        return total
