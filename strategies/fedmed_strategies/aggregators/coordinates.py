"""Robust rules for each number by itself: the median and the trimmed mean."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedmed_strategies.aggregators.robust import by_coordinate
from fedmed_strategies.combining import Aggregator, Gathering
from fedmed_strategies.pieces import Arrays, Memory, Scene


class Median(Aggregator):
    """The median of each number over the sites, who count alike."""

    name = "median"
    source = "Yin et al. 2018, 'Byzantine-robust distributed learning: towards optimal statistical rates', ICML, definition 1"
    sees_each_update = True

    def begin(self, template: Arrays, scene: Scene, memory: Memory) -> Gathering:
        """An empty gathering."""
        return by_coordinate(lambda values: np.median(values, axis=0))


class TrimmedMean(Aggregator):
    """The mean of each number over the sites, who count alike, without the ``share`` largest and as many smallest."""

    name = "trimmed_mean"
    source = "Yin et al. 2018, 'Byzantine-robust distributed learning: towards optimal statistical rates', ICML, definition 2"
    sees_each_update = True
    share: Annotated[float, Field(ge=0.0, lt=0.5)] = 0.2

    def begin(self, template: Arrays, scene: Scene, memory: Memory) -> Gathering:
        """An empty gathering."""
        return by_coordinate(self._trimmed)

    def _trimmed(self, values: NDArray[np.float32]) -> NDArray[np.float64]:
        cut = int(round(self.share * len(values), 9))
        return np.asarray(np.sort(values, axis=0)[cut : len(values) - cut].mean(axis=0, dtype=np.float64))
