"""Adaptive server optimizers: FedAdagrad, FedAdam, FedYogi."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedmed_common.fields import Positive
from fedmed_common.params import is_statistic
from fedmed_strategies.combining import ServerOptimizer
from fedmed_strategies.pieces import Arrays, Memory, Scene, own, under

_SOURCE = "Reddi et al. 2021, 'Adaptive federated optimization', ICLR, algorithm 2"


class Adaptive(ServerOptimizer):
    """m <- beta_1 m + (1 - beta_1) update; v as the method has it; w <- w + rate m / (sqrt(v) + tau). v begins at ``initial``.

    ``initial``: absent, tau^2, the least that the paper allows. There is no correction for the first steps' bias: the paper has
    none. Running statistics move to the sites' mean."""

    source = _SOURCE
    rate: Positive = 0.1
    beta_1: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.9
    beta_2: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.99
    tau: Positive = 1e-3
    initial: Annotated[float, Field(ge=0.0)] | None = None

    def step(self, parameters: Arrays, update: Arrays, memory: Memory, scene: Scene) -> tuple[Arrays, Memory]:
        """New parameters, m and v."""
        first, second = own(memory, f"{self.name}/m"), own(memory, f"{self.name}/v")
        initial = self.tau**2 if self.initial is None else self.initial
        moved: Arrays = {}
        for name, array in update.items():
            if is_statistic(name):
                moved[name] = np.add(parameters[name], array, dtype=np.float32)
                continue
            wanted = array.astype(np.float64)
            m = self.beta_1 * first.get(name, np.zeros(array.shape)) + (1 - self.beta_1) * wanted
            v = self.second(second.get(name, np.full(array.shape, initial)), np.square(wanted))
            first[name], second[name] = m, v
            moved[name] = (parameters[name] + self.rate * m / (np.sqrt(v) + self.tau)).astype(np.float32)
        return moved, under(f"{self.name}/m", first) | under(f"{self.name}/v", second)

    def second(self, v: NDArray[np.float64], square: NDArray[np.float64]) -> NDArray[np.float64]:
        """The new v, from the update's square."""
        raise NotImplementedError


class Adagrad(Adaptive):
    """v <- v + update^2. The paper's own has beta_1 = 0."""

    name = "adagrad"
    beta_1: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0

    def second(self, v: NDArray[np.float64], square: NDArray[np.float64]) -> NDArray[np.float64]:
        """The new v."""
        return v + square


class Adam(Adaptive):
    """v <- beta_2 v + (1 - beta_2) update^2."""

    name = "adam"

    def second(self, v: NDArray[np.float64], square: NDArray[np.float64]) -> NDArray[np.float64]:
        """The new v."""
        return self.beta_2 * v + (1 - self.beta_2) * square


class Yogi(Adaptive):
    """v <- v - (1 - beta_2) update^2 sign(v - update^2)."""

    name = "yogi"
    rate: Positive = 0.01

    def second(self, v: NDArray[np.float64], square: NDArray[np.float64]) -> NDArray[np.float64]:
        """The new v."""
        return v - (1 - self.beta_2) * square * np.sign(v - square)
