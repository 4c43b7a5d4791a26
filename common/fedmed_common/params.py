"""Arithmetic on model parameters: named float32 arrays in the model's own order."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fedmed_common.errors import WireError

if TYPE_CHECKING:
    import torch

Parameters = dict[str, NDArray[np.float32]]
"""Every floating-point tensor of a model's state, by name. Integer buffers (BatchNorm's step counter) stay where they are."""

_MEAN, _VARIANCE = "running_mean", "running_var"
_BLOCK, _CHUNK = 1 << 15, 1 << 22


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
            if tensor.device.type == "cpu" and tensor.dtype == torch.float32:
                np.copyto(tensor.numpy(), parameters[name])
            else:
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


def delta(
    model: torch.nn.Module,
    start: Mapping[str, NDArray[np.float32]],
    names: Sequence[str] | None = None,
    out: Parameters | None = None,
) -> Parameters:
    """What training changed: the ``trained`` part of the model's state minus ``start``. ``names``: of that part, where known;
    ``out``: arrays like those, to be written to."""
    state = model.state_dict()
    return {
        name: np.subtract(
            state[name].detach().float().cpu().numpy(), start[name], out=None if out is None else out[name]
        )
        for name in (trained(model) if names is None else names)
    }


def norm(parameters: Mapping[str, NDArray[np.float32]]) -> float:
    """Euclidean length over all tensors, accumulated in double precision.

    Not by BLAS, whose threads go on spinning for a while and would slow down the training that follows.
    """
    wide = np.empty(_BLOCK, np.float64)
    squares = 0.0
    for block in _blocks(parameters):
        values = wide[: block.size]
        np.copyto(values, block)
        squares += float(np.einsum("i,i->", values, values))
    return math.sqrt(squares)


def rough_norm(parameters: Mapping[str, NDArray[np.float32]]) -> float:
    """The same to about one part in a hundred thousand, as fast as memory is read, to compare with a limit. Infinite above
    1e19."""
    import torch

    _use_read_only()
    squares = 0.0
    for chunk in _blocks(parameters, _CHUNK):
        numbers = torch.from_numpy(chunk)
        squares += float(torch.dot(numbers, numbers))
    return math.sqrt(squares)


@cache
def _use_read_only() -> None:
    """Have PyTorch's warning of read-only arrays, which comes once in a process, here and unseen."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.from_numpy(np.frombuffer(bytes(4), np.float32))


def _blocks(
    parameters: Mapping[str, NDArray[np.float32]], size: int = _BLOCK
) -> Iterator[NDArray[np.float32]]:
    """All numbers in pieces of at most so many."""
    for array in parameters.values():
        flat = array.reshape(-1)
        for first in range(0, flat.size, size):
            yield flat[first : first + size]


def count(parameters: Mapping[str, NDArray[np.float32]]) -> int:
    """How many numbers the parameters hold."""
    return sum(array.size for array in parameters.values())


class WeightedMean:
    """A mean that takes one update at a time, so that memory holds one sum whatever the number of sites.

    The result depends on the order of ``add``: callers add in a fixed order of sites. Running variances are pooled, not
    averaged: the variance of all sites' values together is the mean of the sites' variances plus the variance of their means.
    """

    def __init__(self, template: Mapping[str, NDArray[np.float32]]) -> None:
        self._sum: Parameters = {name: np.zeros(array.shape, array.dtype) for name, array in template.items()}
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
        import torch

        _use_read_only()
        for name, total in self._sum.items():
            torch.from_numpy(total).add_(torch.from_numpy(update[name]), alpha=weight)
        for name in self._squares:
            mean = name.removesuffix(_VARIANCE) + _MEAN
            self._squares[name] += weight * np.square(update[mean], dtype=np.float64)
        self._weight += weight

    def mean(self) -> Parameters:
        """The weighted mean of what was added, in the place of the sum: nothing can be added any more.

        Raises:
            ZeroDivisionError: nothing was added.
        """
        if not self._weight:
            raise ZeroDivisionError("the mean of no update")
        import torch

        means, self._sum = self._sum, {}
        for total in means.values():
            torch.from_numpy(total).div_(self._weight)
        for name, squares in self._squares.items():
            shift = means[name.removesuffix(_VARIANCE) + _MEAN].astype(np.float64)
            spread = np.maximum(squares / self._weight - np.square(shift), 0.0)
            means[name] = (means[name] + spread).astype(np.float32)
        return means
