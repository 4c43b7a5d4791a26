"""A recipe: a federated strategy as one value."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fedmed_common.params import Parameters

Weigh = Callable[[int], float]
"""Training patients of a site -> its weight in the mean."""

ServerStep = Callable[[Parameters, Parameters], Parameters]
"""(parameters, mean update) -> new parameters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How sites' updates become one model: each update is weighed, their mean is applied by the server's step."""

    name: str
    weigh: Weigh
    server_step: ServerStep


def by_patients(patients: int) -> float:
    """A site counts as much as it has training patients."""
    return float(patients)


def add_mean(parameters: Parameters, mean: Parameters) -> Parameters:
    """Move to the mean of the sites' models: w + mean(delta)."""
    return {name: np.add(array, mean[name], dtype=np.float32) for name, array in parameters.items()}
