"""Arithmetic on model parameters: named float32 arrays in the model's own order."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fedmed_common.errors import WireError

if TYPE_CHECKING:
    import torch

Parameters = dict[str, NDArray[np.float32]]
"""Every floating-point tensor of a model's state, by name. Integer buffers (BatchNorm's step counter) stay where they are."""

_MEAN, _VARIANCE = "running_mean", "running_var"


def from_model(model: torch.nn.Module) -> Parameters:
    """A copy of the model's floating-point state."""
    return {
        name: tensor.detach().float().cpu().numpy().copy()
        for name, tensor in model.state_dict().items()
        if tensor.is_floating_point()
    }


def to_model(parameters: Mapping[str, NDArray[np.float32]], model: torch.nn.Module) -> None:
    """Copy parameters into the model, in place.

    Raises:
        WireError: ``parameters`` are not those of this model.
    """
    import torch

    floating = {name: tensor for name, tensor in model.state_dict().items() if tensor.is_floating_point()}
    if {name: tuple(tensor.shape) for name, tensor in floating.items()} != {
        name: array.shape for name, array in parameters.items()
    }:
        raise WireError("the parameters are not those of this experiment's network")
    with torch.no_grad():
        for name, tensor in floating.items():
            tensor.copy_(torch.tensor(parameters[name]))


def trained(model: torch.nn.Module) -> tuple[str, ...]:
    """Names of what training changes: parameters that are not frozen, and running statistics of batch norms that are not."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    frozen = {name for name, parameter in parameters.items() if not parameter.requires_grad}
    buffers = {name for name, _ in model.named_buffers()}
    return tuple(
        name
        for name, tensor in model.state_dict().items()
        if tensor.is_floating_point()
        and name not in frozen
        and (name not in buffers or is_statistic(name))
        and not (is_statistic(name) and name.rpartition(".")[0] + ".weight" in frozen)
    )


def is_statistic(name: str) -> bool:
    """Whether the array is a batch norm's running mean or variance: measured, not learned, and nothing for an optimizer."""
    return name.endswith((_MEAN, _VARIANCE))


def is_variance(name: str) -> bool:
    """Whether the array is a batch norm's running variance, which is never negative."""
    return name.endswith(_VARIANCE)


def delta(model: torch.nn.Module, start: Mapping[str, NDArray[np.float32]]) -> Parameters:
    """What training changed: the ``trained`` part of the model's state minus ``start``."""
    state = model.state_dict()
    return {name: state[name].detach().float().cpu().numpy() - start[name] for name in trained(model)}


def norm(parameters: Mapping[str, NDArray[np.float32]]) -> float:
    """Euclidean length over all tensors, accumulated in double precision.

    Not by BLAS, whose threads go on spinning for a while and would slow down the training that follows.
    """
    flat = (array.ravel().astype(np.float64) for array in parameters.values())
    return math.sqrt(sum(float(np.einsum("i,i->", values, values)) for values in flat))


def count(parameters: Mapping[str, NDArray[np.float32]]) -> int:
    """How many numbers the parameters hold."""
    return sum(array.size for array in parameters.values())


class WeightedMean:
    """A mean that takes one update at a time, so that memory holds one sum whatever the number of sites.

    The result depends on the order of ``add``: callers add in a fixed order of sites. Running variances are pooled, not
    averaged: the variance of all sites' values together is the mean of the sites' variances plus the variance of their means.
    """

    def __init__(self, template: Mapping[str, NDArray[np.float32]]) -> None:
        self._sum: Parameters = {name: np.zeros_like(array) for name, array in template.items()}
        self._squares = {
            name: np.zeros(array.shape, np.float64) for name, array in template.items() if is_variance(name)
        }
        self._weight = 0.0

    def add(self, update: Mapping[str, NDArray[np.float32]], weight: float) -> None:
        """Add one update.

        Raises:
            ValueError: the weight is not a positive finite number.
        """
        if not (math.isfinite(weight) and weight > 0):
            raise ValueError(f"weight {weight} is not positive")
        for name in self._sum:
            self._sum[name] += update[name] * np.float32(weight)
        for name in self._squares:
            mean = name.removesuffix(_VARIANCE) + _MEAN
            self._squares[name] += weight * np.square(update[mean], dtype=np.float64)
        self._weight += weight

    def mean(self) -> Parameters:
        """The weighted mean of what was added.

        Raises:
            ZeroDivisionError: nothing was added.
        """
        if not self._weight:
            raise ZeroDivisionError("the mean of no update")
        means = {name: total / np.float32(self._weight) for name, total in self._sum.items()}
        for name, squares in self._squares.items():
            shift = means[name.removesuffix(_VARIANCE) + _MEAN].astype(np.float64)
            spread = np.maximum(squares / self._weight - np.square(shift), 0.0)
            means[name] = (means[name] + spread).astype(np.float32)
        return means
