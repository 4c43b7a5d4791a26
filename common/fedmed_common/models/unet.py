"""U-Net (Ronneberger et al. 2015) with optional residual units (Kerfoot et al. 2019), as MONAI builds it, in 2D and 3D."""

from __future__ import annotations

from math import gcd, prod
from typing import Any

from monai.networks.nets import UNet
from torch import nn

from fedmed_common.config import Experiment
from fedmed_common.errors import ConfigError

STRIDE = 2
GROUPS = 8

NORMS: dict[str, Any] = {
    "instance": ("instance", {"affine": True}),
    "batch": "batch",
    "group": ("instance", {"affine": False}),
}


def build(experiment: Experiment) -> nn.Module:
    """One level for each number in ``model.channels``, each half as fine as the one above.

    Norms have a learned scale and shift. ``group`` has 8 groups, fewer in layers whose channels do not divide by 8.

    Raises:
        ConfigError: the deepest level is a single voxel, of which its norm would leave nothing.
    """
    model, task = experiment.model, experiment.task
    steps = len(model.channels) - 1
    deepest = [size // STRIDE**steps for size in experiment.data.patch]
    if prod(deepest) == 1:
        raise ConfigError(
            f"{len(model.channels)} levels shrink a patch of {list(experiment.data.patch)} to one voxel; "
            "its norm over that voxel alone leaves nothing",
            field="model.channels",
            fix="use fewer levels or a larger data.patch",
        )
    network = UNet(
        spatial_dims=task.dimensions,
        in_channels=experiment.data.channels,
        out_channels=1 + len(task.classes),
        channels=model.channels,
        strides=(STRIDE,) * steps,
        num_res_units=model.residual_units,
        norm=NORMS[model.norm],
        dropout=model.dropout,
    )
    if model.norm == "group":
        _use_group_norm(network)
    return network  # type: ignore[no-any-return]


def _use_group_norm(network: nn.Module) -> None:
    """MONAI's own option has one number of groups for all layers, but the last level has as many channels as classes."""
    for module in network.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.InstanceNorm2d | nn.InstanceNorm3d):
                setattr(module, name, nn.GroupNorm(gcd(GROUPS, child.num_features), child.num_features))
