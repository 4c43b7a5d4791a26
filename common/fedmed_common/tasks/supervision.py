"""The loss of a network that gives several outputs: deep supervision, and a classifier's auxiliary heads.

A network may return a tuple while it trains: the main output first, then auxiliary ones, of a lower resolution if it likes. Each
gets the loss, by weights that the network has as ``output_weights``; one that has none gets those of nnU-Net (Isensee et al.
2021, Nature Methods 18, supplementary note 2): each output half the weight of the one before, the sum 1. nnU-Net leaves its last
output out; here every output that a network gives counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from fedmed_common.tasks import Extra
from fedmed_common.tasks.losses import Loss

Outputs = Tensor | Sequence[Tensor]


def per_sample(
    loss: Loss, outputs: Outputs, target: Tensor, annotated: Tensor, weights: Sequence[float] | None = None
) -> Tensor:
    """The weighted sum of the outputs' losses, ``(B,)``, in float32 whatever the outputs are.

    ``target``: of the main output's size; for a smaller one it is shrunk to it.

    Raises:
        ValueError: not as many weights as outputs.
    """
    several = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    if weights is None:
        weights = halving(len(several))
    if len(weights) != len(several):
        raise ValueError(f"the network gives {len(several)} outputs and has {len(weights)} output_weights")
    with torch.autocast(several[0].device.type, enabled=False):
        losses = [loss(output.float(), shrunk(target, output), annotated) for output in several]
        if len(losses) == 1:
            return losses[0]
        return torch.stack([weight * each for weight, each in zip(weights, losses, strict=True)]).sum(0)


def objective(
    loss: Loss,
    model: nn.Module,
    outputs: Outputs,
    image: Tensor,
    target: Tensor,
    annotated: Tensor,
    more: Extra | None = None,
) -> Tensor:
    """What training makes small, a scalar: the mean over the batch of each sample's loss, and of what the network adds to it.

    ``model``: what gave the ``outputs``; its ``objective_extra(image, outputs, target, annotated) -> (B,)``, where it has one, is
    added while it trains; so is ``more``.
    """
    losses = per_sample(loss, outputs, target, annotated, attribute(model, "output_weights"))
    own = attribute(model, "objective_extra") if model.training else None
    for extra in (own, more):
        if extra is not None:
            losses = losses + extra(image, outputs, target, annotated)
    return losses.mean()


def halving(outputs: int) -> tuple[float, ...]:
    """Weights of which each is half the one before, and whose sum is 1."""
    total = 2.0 - 2.0 ** (1 - outputs)
    return tuple(2.0**-place / total for place in range(outputs))


def shrunk(target: Tensor, output: Tensor) -> Tensor:
    """A label map ``(B, *S)`` by nearest neighbour to the resolution of an output ``(B, C, *s)``.

    A target of that size, and one that is no map, as ``(B, K)`` beside ``(B, K)``, is as it was.
    """
    size = output.shape[2:]
    if not size or target.shape[1:] == size:
        return target
    return interpolate(target[:, None].float(), size, mode="nearest-exact")[:, 0].to(target.dtype)


def attribute(model: nn.Module, name: str) -> Any:
    """What a network has under this name, also one that is wrapped for several processes; None where it has nothing."""
    found, inner = getattr(model, name, None), getattr(model, "module", None)
    if found is None and isinstance(inner, nn.Module):
        return attribute(inner, name)
    return found
