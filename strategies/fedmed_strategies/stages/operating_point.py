"""Choosing how readily each class is called, from what sites say of their patients."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedmed_common.fields import Fraction
from fedmed_strategies.pieces import Arrays, Layers, Memory, Scene, Stage
from fedmed_strategies.statistics.base import Statistic
from fedmed_strategies.statistics.operating_points import OperatingPoints

if TYPE_CHECKING:
    from torch import nn


class OperatingPoint(Stage):
    """Gives each class the offset of its bias and the least volume with the greatest mean Dice minus ``cost`` times the share of
    false positives, over the sites' training patients.

    A class that fewer than ``least`` patients do not show stays as it is. Of one that fewer than ``least`` show, or that sites
    say so little of, the Dice is not known: its least volume is the first at which it is called in at most ``most_false`` of the
    patients without it. One that fewer than ``rare`` show is never called less readily than it is: the few are known by heart,
    so that their sums make the class look stronger than it is in new patients. Of points that are as good, the one that changes
    least is taken. The least volumes are no part of the network: they go with it, to every site that measures it and into the
    published file."""

    name = "operating_point"
    cost: Annotated[float, Field(ge=0.0)] = 0.5
    least: Annotated[int, Field(ge=1)] = 3
    rare: Annotated[int, Field(ge=0)] = 50
    most_false: Fraction = 0.25
    from_share: Fraction = 0.8
    points: OperatingPoints = OperatingPoints()

    @property
    def statistic(self) -> Statistic:
        """What it asks of the sites."""
        return self.points

    def check(self, model: nn.Module, layers: Layers, image: tuple[int, ...]) -> None:
        """Refuse a network without a bias of its logits."""
        from fedmed_strategies.layers import logit_bias

        logit_bias(model, layers, image)

    def apply(
        self, parameters: Arrays, sums: Arrays, scene: Scene, model: nn.Module
    ) -> tuple[Arrays, Memory]:
        """The parameters with other biases, and each class's least volume.

        Raises:
            ConfigError: no bias is added to the logits as it is.
        """
        from fedmed_strategies.layers import logit_bias

        bias = logit_bias(model, scene.layers, scene.image)
        offsets, volumes_mm3 = self.choose(sums)
        shift = np.concatenate([np.zeros(int(scene.background)), offsets])
        moved = {**parameters, bias: (parameters[bias] + shift).astype(np.float32)}
        return moved, {"least_mm3": volumes_mm3.astype(np.float32)}

    def choose(self, sums: Arrays) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """By class the offset and the least volume in mm^3, each ``(K,)``."""
        offsets, volumes = np.array(self.points.offsets), np.array(self.points.volumes_mm3)
        chosen = np.zeros((2, len(sums["shown"])))
        change = np.abs(offsets)[:, None] + np.arange(len(volumes)) / len(volumes)
        for place, (shown, absent) in enumerate(zip(sums["shown"], sums["absent"], strict=True)):
            if absent < self.least:
                continue
            false = sums["false"][place] / absent
            if shown < self.least:
                enough = false[int(np.argmin(np.abs(offsets)))] <= self.most_false
                chosen[1, place] = volumes[int(np.argmax(enough)) if enough.any() else -1]
                continue
            allowed = np.where((offsets < 0) & (shown < self.rare), np.inf, 0.0)[:, None]
            value = sums["dice"][place] / shown - self.cost * false - allowed
            best = np.where(value >= value.max() - 1e-6, change, np.inf)
            row, column = np.unravel_index(int(np.argmin(best)), best.shape)
            chosen[:, place] = offsets[row], volumes[column]
        return chosen[0], chosen[1]
