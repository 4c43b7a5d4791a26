"""Bulyan: Krum's choice again and again, then of each number the mean of those nearest to the median."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedmed_strategies.aggregators.robust import Together
from fedmed_strategies.combining import Aggregator, Gathering, Weighed
from fedmed_strategies.filters.distances import enough, squared_distances
from fedmed_strategies.filters.krum import by_score
from fedmed_strategies.pieces import Arrays, Memory, Scene


class Bulyan(Aggregator):
    """Chooses n - 2 f updates by repeated Krum; of each number the mean of the n - 4 f chosen values nearest to their median.

    Needs n >= 4 f + 3 answers, so seven sites against one. Sites count alike.
    """

    name = "bulyan"
    source = "El Mhamdi et al. 2018, 'The hidden vulnerability of distributed learning in Byzantium', ICML, section 4"
    sees_each_update = True
    hostile: Annotated[int, Field(ge=0)] = 1

    def begin(self, template: Arrays, scene: Scene, memory: Memory) -> Gathering:
        """An empty gathering."""
        return Together(self._combine)

    def _combine(self, updates: list[Weighed], parts: list[Arrays]) -> Arrays:
        enough(self.name, len(parts), 4 * self.hostile + 3 if self.hostile else 1, self.hostile)
        chosen = [parts[place] for place in self._choose(squared_distances(parts))]
        nearest = len(parts) - 4 * self.hostile
        return {name: _near_median(np.stack([part[name] for part in chosen]), nearest) for name in parts[0]}

    def _choose(self, squares: NDArray[np.float64]) -> list[int]:
        left, chosen = list(range(len(squares))), list[int]()
        while len(chosen) < len(squares) - 2 * self.hostile:
            best = by_score(squares[np.ix_(left, left)], self.hostile)[0]
            chosen.append(left.pop(int(best)))
        return sorted(chosen)


def _near_median(values: NDArray[np.float32], nearest: int) -> NDArray[np.float32]:
    away = np.abs(values - np.median(values, axis=0))
    places = np.argsort(away, axis=0, kind="stable")[:nearest]
    near = np.take_along_axis(values, places, axis=0)
    return np.asarray(near.mean(axis=0, dtype=np.float64), np.float32)
