"""Krum and Multi-Krum: the updates that lie closest to most others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedmed_strategies.combining import Filter, Weighed
from fedmed_strategies.filters.distances import enough, squared_distances


class MultiKrum(Filter):
    """Keeps the updates with the lowest scores: the sum of squared distances to the n - f - 2 nearest others, one at least.

    ``hostile``: f, of n answers; n >= 2 f + 3. ``kept``: how many; absent, n - f.
    """

    name = "multi_krum"
    source = (
        "Blanchard et al. 2017, 'Machine learning with adversaries: Byzantine tolerant gradient descent', NeurIPS, "
        "sections 4 and 5"
    )
    hostile: Annotated[int, Field(ge=0)] = 1
    kept: Annotated[int, Field(ge=1)] | None = None

    def keep(self, updates: Sequence[Weighed]) -> list[Weighed]:
        """The updates that go on, in their order."""
        if self.hostile:
            enough(self.name, len(updates), 2 * self.hostile + 3, self.hostile)
        squares = squared_distances([update.delta for update in updates])
        best = by_score(squares, self.hostile)[: self.kept or len(updates) - self.hostile]
        return [updates[place] for place in sorted(best)]


class Krum(MultiKrum):
    """Keeps the one update with the lowest score."""

    name = "krum"
    kept: Annotated[int, Field(ge=1)] | None = 1


def by_score(squares: NDArray[np.float64], hostile: int) -> NDArray[np.intp]:
    """The updates' places, the best first. Of equal scores the one that is nearer to all others goes first, not the one that
    answered first: two updates that are each other's one nearest always have the same score."""
    others = [np.sort(np.delete(row, place)) for place, row in enumerate(squares)]
    nearest = max(1, len(squares) - hostile - 2)
    scores = [row[:nearest].sum() for row in others]
    return np.lexsort(([row.sum() for row in others], scores))
