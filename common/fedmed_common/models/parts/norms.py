"""Norm layers by the name that an experiment gives."""

from __future__ import annotations

from math import gcd
from typing import Any

from torch import nn

from fedmed_common.catalogue.base import Norm

GROUPS = 8
"""Of a group norm; fewer where the channels do not divide by it."""

_INSTANCE: dict[int, type[nn.Module]] = {1: nn.InstanceNorm1d, 2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}
_BATCH: dict[int, type[nn.Module]] = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}

MONAI: dict[Norm, Any] = {
    "instance": ("instance", {"affine": True}),
    "batch": "batch",
    "group": ("instance", {"affine": False}),
}
"""What MONAI's networks take as ``norm``; a network built with ``group`` then goes through ``use_group_norm``."""


def make_norm(kind: Norm, channels: int, dimensions: int) -> nn.Module:
    """A norm with a learned scale and shift for maps ``(B, channels, *S)`` of so many dimensions."""
    if kind == "group":
        return nn.GroupNorm(gcd(GROUPS, channels), channels)
    if kind == "instance":
        return _INSTANCE[dimensions](channels, affine=True)
    return _BATCH[dimensions](channels)


def use_group_norm(network: nn.Module) -> None:
    """Put group norms in place of instance norms: MONAI's own option has one number of groups for all layers."""
    for module in network.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.InstanceNorm2d | nn.InstanceNorm3d):
                setattr(module, name, nn.GroupNorm(gcd(GROUPS, child.num_features), child.num_features))


def without_inplace(network: nn.Module) -> nn.Module:
    """The network, none of whose activations overwrites its input any more: gradients of single samples need it."""
    for module in network.modules():
        if getattr(module, "inplace", False):
            module.inplace = False  # type: ignore[assignment]
    return network
