"""The weighted mean."""

from __future__ import annotations

from fedmed_strategies.combining import Aggregator, Gathering, MeanGathering
from fedmed_strategies.pieces import Arrays, Memory, Scene


class Mean(Aggregator):
    """The weighted mean, one update in memory at a time, whatever the number of sites."""

    name = "mean"

    def begin(self, template: Arrays, scene: Scene, memory: Memory) -> Gathering:
        """An empty gathering."""
        return MeanGathering(template)
