"""SegFormer (Xie et al. 2021) as transformers builds it, in 2D. The decoder's norm is the experiment's; layer norms stay."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import SegformerConfig, SegformerForSemanticSegmentation

from fedmed_common.catalogue.base import Plan
from fedmed_common.catalogue.transformers import SegFormer
from fedmed_common.models.parts.norms import make_norm

_SIZES: dict[str, tuple[tuple[int, ...], tuple[int, ...], int]] = {
    "tiny": ((8, 16, 40, 64), (1, 1, 1, 1), 16),
    "b0": ((32, 64, 160, 256), (2, 2, 2, 2), 256),
    "b1": ((64, 128, 320, 512), (2, 2, 2, 2), 256),
    "b2": ((64, 128, 320, 512), (3, 4, 6, 3), 768),
    "b3": ((64, 128, 320, 512), (3, 4, 18, 3), 768),
    "b4": ((64, 128, 320, 512), (3, 8, 27, 3), 768),
    "b5": ((64, 128, 320, 512), (3, 6, 40, 3), 768),
}
"""Features and blocks of each stage, and features of the decoder: table 6 of the paper."""


class Network(nn.Module):
    """``(B, in_channels, H, W)`` to logits ``(B, outputs, H, W)``; the decoder works at a quarter of the size."""

    renamed = (
        (r"encoder\.patch_embeddings\.(\d+)\.", r"stages.\1.patch_embeddings."),
        (r"encoder\.block\.(\d+)\.", r"stages.\1.blocks."),
        (r"encoder\.layer_norm\.(\d+)\.", r"stages.\1.layer_norm."),
        (r"attention\.self\.query\.", "attention.q_proj."),
        (r"attention\.self\.key\.", "attention.k_proj."),
        (r"attention\.self\.value\.", "attention.v_proj."),
        (r"attention\.self\.sr\.", "attention.sequence_reduction.sequence_reduction."),
        (r"attention\.self\.layer_norm\.", "attention.sequence_reduction.layer_norm."),
        (r"attention\.output\.dense\.", "attention.o_proj."),
        (r"mlp\.dense1\.", "mlp.fc1."),
        (r"mlp\.dense2\.", "mlp.fc2."),
        (r"layer_norm_1\.", "layernorm_before."),
        (r"layer_norm_2\.", "layernorm_after."),
        (r"decode_head\.linear_c\.", "decode_head.linear_projections."),
    )
    """Patterns of names in published files, and what transformers 5 calls those layers."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def checkpoint_blocks(self) -> list[nn.Module]:
        """The transformer's blocks."""
        return [block for stage in self.network.segformer.stages for block in stage.blocks]

    def forward(self, image_BCHW: Tensor) -> Tensor:
        features, maps = image_BCHW, []
        for stage in self.network.segformer.stages:
            features = stage(features)
            maps.append(features)
        logits = self.network.decode_head(maps)
        return nn.functional.interpolate(
            logits, size=image_BCHW.shape[2:], mode="bilinear", align_corners=False
        )


def build(model: SegFormer, plan: Plan) -> nn.Module:
    """The variant with random weights."""
    features, blocks, decoder = _SIZES[model.variant]
    config = SegformerConfig(
        num_channels=plan.in_channels,
        num_labels=plan.outputs,
        hidden_sizes=list(features),
        depths=list(blocks),
        decoder_hidden_size=decoder,
        drop_path_rate=model.drop_path,
        classifier_dropout_prob=model.dropout,
    )
    network = SegformerForSemanticSegmentation(config)
    network.decode_head.batch_norm = make_norm(model.norm, decoder, 2)
    return Network(network)
