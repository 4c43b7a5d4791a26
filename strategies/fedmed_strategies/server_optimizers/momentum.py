"""The step itself, with a rate and momentum: FedAvg and FedAvgM."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from pydantic import Field

from fedmed_common.fields import Positive
from fedmed_common.params import is_statistic
from fedmed_strategies.combining import ServerOptimizer
from fedmed_strategies.pieces import Arrays, Memory, Scene, own, under


class Momentum(ServerOptimizer):
    """v <- momentum v + update; w <- w + rate v. Running statistics move to the sites' mean, whatever the rate."""

    name = "momentum"
    source = (
        "Hsu et al. 2019, 'Measuring the effects of non-identical data distribution for federated visual classification', "
        "section 4.3"
    )
    rate: Positive = 1.0
    momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0

    def step(self, parameters: Arrays, update: Arrays, memory: Memory, scene: Scene) -> tuple[Arrays, Memory]:
        """New parameters, and v where there is momentum."""
        before = own(memory, f"{self.name}/velocity")
        velocity: Arrays = {}
        moved: Arrays = {}
        for name, array in update.items():
            pace = array
            if not is_statistic(name):
                if self.momentum and name in before:
                    pace = np.float32(self.momentum) * before[name] + array
                velocity[name] = pace
                pace = pace if self.rate == 1.0 else np.float32(self.rate) * pace
            moved[name] = np.add(parameters[name], pace, dtype=parameters[name].dtype)
        return moved, under(f"{self.name}/velocity", velocity) if self.momentum else {}
