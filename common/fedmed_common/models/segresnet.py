"""SegResNet (Myronenko 2018, section 3.1) without its variational branch, as MONAI builds it, in 2D and 3D.

The paper's norm is group norm; ours is what ``model.norm`` says.
"""

from __future__ import annotations

from monai.networks.nets import SegResNet as Network
from torch import nn

from fedmed_common.catalogue.base import Plan
from fedmed_common.catalogue.unets_modern import SegResNet
from fedmed_common.models.parts.norms import MONAI, use_group_norm


def build(model: SegResNet, plan: Plan) -> nn.Module:
    """``(B, in_channels, *patch)`` to logits ``(B, outputs, *patch)``."""
    network: nn.Module = Network(
        spatial_dims=plan.dimensions,
        init_filters=model.features,
        in_channels=plan.in_channels,
        out_channels=plan.outputs,
        dropout_prob=model.dropout or None,
        act=("relu", {"inplace": False}),
        norm=MONAI[model.norm],
        blocks_down=model.blocks_down,
        blocks_up=model.blocks_up,
    )
    if model.norm == "group":
        use_group_norm(network)
    return network
