"""Swin UNETR (Hatamizadeh et al. 2022) as MONAI builds it, in 2D and 3D.

The convolutions' norm is the experiment's; the transformer's layer norms stay, and so do, in version 2, the instance norms of
the convolutions before each level.
"""

from __future__ import annotations

import torch
from monai.networks.nets import SwinUNETR as Network
from torch import nn

from fedmed_common.catalogue.base import Plan
from fedmed_common.catalogue.transformers import SwinUNETR
from fedmed_common.models.parts.norms import MONAI, use_group_norm, without_inplace


def build(model: SwinUNETR, plan: Plan) -> nn.Module:
    """``(B, in_channels, *patch)`` to logits ``(B, outputs, *patch)``.

    Built on the CPU, for MONAI reads numbers back from tensors on the way, and then moved to the default device, as ``meta``.
    """
    with torch.device("cpu"):
        network: nn.Module = Network(
            in_channels=plan.in_channels,
            out_channels=plan.outputs,
            patch_size=2,
            depths=model.depths,
            num_heads=model.heads,
            window_size=model.window,
            feature_size=model.features,
            norm_name=MONAI[model.norm],
            drop_rate=model.dropout,
            dropout_path_rate=model.drop_path,
            spatial_dims=plan.dimensions,
            use_v2=model.version == 2,
        )
        if model.norm == "group":
            use_group_norm(network)
    return without_inplace(network.to(torch.get_default_device()))
