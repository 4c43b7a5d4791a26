"""U-Net (Ronneberger et al. 2015) with optional residual units (Kerfoot et al. 2019), as MONAI builds it, in 2D and 3D."""

from __future__ import annotations

from monai.networks.nets import UNet as Network
from torch import nn

from fedmed_common.catalogue.base import Plan
from fedmed_common.catalogue.unets import UNet
from fedmed_common.models.parts.norms import MONAI, use_group_norm

STRIDE = 2


def build(model: UNet, plan: Plan) -> nn.Module:
    """``(B, in_channels, *patch)`` to logits ``(B, outputs, *patch)``. Norms have a learned scale and shift."""
    network: nn.Module = Network(
        spatial_dims=plan.dimensions,
        in_channels=plan.in_channels,
        out_channels=plan.outputs,
        channels=model.channels,
        strides=(STRIDE,) * (len(model.channels) - 1),
        num_res_units=model.residual_units,
        norm=MONAI[model.norm],
        dropout=model.dropout,
    )
    if model.norm == "group":
        use_group_norm(network)
    return network
