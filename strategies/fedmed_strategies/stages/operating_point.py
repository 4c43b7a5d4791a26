"""Choosing how readily each class is called, from what sites say of their patients."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedmed_common.fields import Fraction
from fedmed_strategies.pieces import Arrays, Scene, Stage
from fedmed_strategies.statistics.base import Statistic
from fedmed_strategies.statistics.operating_points import OperatingPoints

if TYPE_CHECKING:
    from torch import nn


class OperatingPoint(Stage):
    """Adds to each class's bias the offset with the greatest mean Dice minus ``cost`` times the share of false positives.

    A class that fewer than ``least`` patients show, or fewer do not, stays as it is. Of equal offsets the smallest change is
    taken."""

    name = "operating_point"
    cost: Annotated[float, Field(ge=0.0)] = 0.5
    least: Annotated[int, Field(ge=1)] = 3
    from_share: Fraction = 0.0
    points: OperatingPoints = OperatingPoints()

    @property
    def statistic(self) -> Statistic:
        """What it asks of the sites."""
        return self.points

    def apply(self, parameters: Arrays, sums: Arrays, scene: Scene, model: nn.Module) -> Arrays:
        """The parameters with other biases.

        Raises:
            ConfigError: the head's last layer has no bias.
        """
        from fedmed_strategies.layers import last_layer

        bias = last_layer(model, scene.layers).bias
        chosen = np.concatenate([np.zeros(int(scene.background)), self.choose(sums)])
        return {**parameters, bias: (parameters[bias] + chosen).astype(np.float32)}

    def choose(self, sums: Arrays) -> NDArray[np.float64]:
        """By class the offset ``(K,)``."""
        offsets = np.array(self.points.offsets)
        chosen = np.zeros(len(sums["shown"]))
        for place, (shown, absent) in enumerate(zip(sums["shown"], sums["absent"], strict=True)):
            if shown < self.least or absent < self.least:
                continue
            value = sums["dice"][place] / shown - self.cost * sums["false"][place] / absent
            best = np.flatnonzero(value >= value.max() - 1e-6)
            chosen[place] = offsets[best[np.argmin(np.abs(offsets[best]))]]
        return chosen
