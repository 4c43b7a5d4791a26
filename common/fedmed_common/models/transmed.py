"""TransMed (Dai et al. 2021, section 3): a ResNet looks at slices, a DeiT at all that it saw.

Three neighbouring slices along z of one channel (a modality) are one image of three channels (section 3.2); a volume whose slices
do not divide by three repeats its last one. Each place of the ResNet's last maps is a token, all of them with learned positions
behind a class token. In 2D each channel is one image, three times the same slice. The paper does not say how its maps are cut
into pieces; ours are single places. ``model.norm`` is the ResNet's; the transformer's norms are layer norms.
"""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor, nn

from fedmed_common.catalogue.base import Plan
from fedmed_common.catalogue.classification import SLICES, TransMed
from fedmed_common.models.backbones.resnet import Depth, ResNet
from fedmed_common.models.parts.tokens import HEAD_WIDTH, blocks, heads_of, initialise_tokens, parameter

SIZES: dict[str, tuple[Depth, int]] = {"tiny": (18, 3), "small": (34, 6), "base": (50, 12)}
"""Layers of the ResNet, and heads of the DeiT."""
LAYERS, STRIDE = 12, 32


class Network(nn.Module):
    """Slices to tokens to logits."""

    def __init__(self, model: TransMed, plan: Plan) -> None:
        super().__init__()
        depth, published = SIZES[model.variant]
        heads = heads_of(published, model.width)
        dimension = heads * HEAD_WIDTH
        slices = plan.patch[2] if plan.dimensions == 3 else 1
        places = prod(-(-size // STRIDE) for size in plan.patch[:2])
        number = plan.in_channels * -(-slices // SLICES) * places
        self.cnn = ResNet(depth, SLICES, 2, model.norm, width=model.width)
        self.proj = nn.Linear(self.cnn.channels[-1], dimension)
        self.cls_token = parameter(1, 1, dimension)
        self.pos_embed = parameter(1, 1 + number, dimension)
        self.pos_drop = nn.Dropout(model.dropout)
        self.blocks = blocks(model.layers or LAYERS, dimension, heads, model.dropout, 0.0)
        self.norm = nn.LayerNorm(dimension, eps=1e-6)
        self.head = nn.Linear(dimension, plan.outputs)

    def forward(self, image: Tensor) -> Tensor:
        images = _by_three(image)
        batch, number = images.shape[:2]
        maps = self.cnn(images.flatten(0, 1))[-1]
        tokens = self.proj(maps.flatten(2).transpose(1, 2)).reshape(batch, number * maps[0, 0].numel(), -1)
        tokens = torch.cat([self.cls_token.expand(batch, -1, -1), tokens], dim=1)
        encoded = self.norm(self.blocks(self.pos_drop(tokens + self.pos_embed)))
        logits: Tensor = self.head(encoded[:, 0])
        return logits


def build(model: TransMed, plan: Plan) -> nn.Module:
    """``(B, in_channels, *patch)`` to logits ``(B, outputs)``."""
    network = Network(model, plan)
    for part in (network.proj, network.blocks, network.head):
        initialise_tokens(part)
    return network


def _by_three(image: Tensor) -> Tensor:
    """``(B, C, X, Y, Z)`` or ``(B, C, X, Y)`` to ``(B, images, 3, X, Y)``."""
    volume = image[..., None] if image.ndim == 4 else image
    missing = -volume.shape[-1] % SLICES
    if missing:
        volume = torch.cat([volume, *[volume[..., -1:]] * missing], dim=-1)
    batch, channels, rows, columns, slices = volume.shape
    grouped = volume.reshape(batch, channels, rows, columns, slices // SLICES, SLICES)
    return grouped.permute(0, 1, 4, 5, 2, 3).reshape(batch, -1, SLICES, rows, columns).contiguous()
