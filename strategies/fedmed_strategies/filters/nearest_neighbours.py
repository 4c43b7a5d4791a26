"""NNM: each update becomes the mean of those nearest to it, so that robust rules also hold where honest sites differ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import numpy as np
from pydantic import Field

from fedmed_strategies.combining import Filter, MeanGathering, Weighed
from fedmed_strategies.filters.distances import enough, squared_distances


class NearestNeighbours(Filter):
    """y_k = the weighted mean of the n - f updates nearest to update k, itself among them. Any rule may follow.

    Needs n > 2 f answers. Holds all updates and as many means in memory.
    """

    name = "nnm"
    source = (
        "Allouah et al. 2023, 'Fixing by mixing: a recipe for optimal Byzantine ML under heterogeneity', AISTATS, "
        "algorithm 2"
    )
    hostile: Annotated[int, Field(ge=0)] = 1

    def keep(self, updates: Sequence[Weighed]) -> list[Weighed]:
        """The means, in the updates' order."""
        enough(self.name, len(updates), 2 * self.hostile + 1, self.hostile)
        squares = squared_distances([update.delta for update in updates])
        near = [np.sort(np.argsort(row, kind="stable")[: len(updates) - self.hostile]) for row in squares]
        return [
            Weighed(delta=_mean([updates[place] for place in places]), weight=update.weight, site=update.site)
            for update, places in zip(updates, near, strict=True)
        ]


def _mean(updates: Sequence[Weighed]) -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]:
    gathering = MeanGathering(updates[0].delta)
    total = 0.0
    for update in updates:
        gathering.add(update)
        total += update.weight
    return gathering.result(total)
