"""UNETR (Hatamizadeh et al. 2022) as MONAI builds it, in 2D and 3D.

The convolutions' norm is the experiment's; the transformer's layer norms stay. The decoder is fed by the outputs of
layers 4, 7, 10 and 12, where the paper (section 3.1) takes 3, 6, 9 and 12.
"""

from __future__ import annotations

from monai.networks import nets
from torch import nn

from fedmed_common.catalogue.base import Plan
from fedmed_common.catalogue.transformers import UNETR
from fedmed_common.models.parts.norms import MONAI, use_group_norm, without_inplace


def build(model: UNETR, plan: Plan) -> nn.Module:
    """``(B, in_channels, *patch)`` to logits ``(B, outputs, *patch)``: position codes are learned for this patch alone.

    Without the norms before the cross-attention that MONAI's blocks have and this network does not use.
    """
    network: nn.Module = nets.UNETR(
        in_channels=plan.in_channels,
        out_channels=plan.outputs,
        img_size=plan.patch,
        feature_size=model.features,
        hidden_size=model.hidden,
        mlp_dim=model.mlp,
        num_heads=model.heads,
        norm_name=MONAI[model.norm],
        dropout_rate=model.dropout,
        spatial_dims=plan.dimensions,
    )
    for block in network.vit.blocks:  # type: ignore[union-attr]
        block.norm_cross_attn = nn.Identity()
    if model.norm == "group":
        use_group_norm(network)
    return without_inplace(network)
