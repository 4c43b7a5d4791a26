"""MedNeXt (Roy et al. 2023), of MONAI's blocks, in 2D and 3D.

As in the authors' code, a block that goes down expands as far as the level that it leads to; MONAI's expands as the level that
it comes from. The paper's norm is a group norm with one channel a group, which is what ``instance`` gives. While training, with
deep supervision, every level of the decoder and the bottom have a head (section 2.2); their weights are those of
``tasks.supervision``.
"""

from __future__ import annotations

from typing import Any

from monai.networks.blocks.mednext_block import MedNeXtBlock, MedNeXtDownBlock
from monai.networks.nets.mednext import MedNeXt as Network
from torch import nn

from fedmed_common.catalogue.base import Plan
from fedmed_common.catalogue.unets_modern import MedNeXt
from fedmed_common.models.parts.norms import make_norm

VARIANTS: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "S": ((2, 2, 2, 2, 2), (2, 2, 2, 2, 2)),
    "B": ((2, 2, 2, 2, 2), (2, 3, 4, 4, 4)),
    "M": ((3, 4, 4, 4, 4), (2, 3, 4, 4, 4)),
    "L": ((3, 4, 8, 8, 8), (3, 4, 8, 8, 8)),
}
"""Blocks and expansion ratio of each level, the finest first, the last is the bottom; the way up mirrors them (table 1)."""


def build(model: MedNeXt, plan: Plan) -> nn.Module:
    """``(B, in_channels, *patch)`` to logits ``(B, outputs, *patch)``; training with deep supervision, coarser ones too."""
    (*blocks, blocks_bottom), (*ratios, ratio_bottom) = VARIANTS[model.variant]
    network: Any = Network(
        spatial_dims=plan.dimensions,
        init_filters=model.features,
        in_channels=plan.in_channels,
        out_channels=plan.outputs,
        encoder_expansion_ratio=ratios,
        decoder_expansion_ratio=ratios[::-1],
        bottleneck_expansion_ratio=ratio_bottom,
        kernel_size=model.kernel,
        deep_supervision=model.deep_supervision,
        use_residual_connection=True,
        blocks_down=blocks,
        blocks_bottleneck=blocks_bottom,
        blocks_up=blocks[::-1],
    )
    for level, ratio in enumerate((*ratios[1:], ratio_bottom)):
        network.down_blocks[level] = MedNeXtDownBlock(
            model.features * 2**level,
            model.features * 2 ** (level + 1),
            ratio,
            model.kernel,
            use_residual_connection=True,
            dim=f"{plan.dimensions}d",
        )
    for block in network.modules():
        if isinstance(block, MedNeXtBlock):
            block.norm = make_norm(model.norm, block.conv1.in_channels, plan.dimensions)
    built: nn.Module = network
    return built
