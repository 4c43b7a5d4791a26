"""Vision Transformer (Dosovitskiy et al. 2021, section 3.1 and table 1), in 2D and, with cubes for squares, in 3D.

Positions are learned for the patch that it is built for. The classifier is one linear layer on the class token. Its norms are
layer norms, whatever ``model.norm`` says.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fedmed_common.catalogue.base import Plan
from fedmed_common.catalogue.classification import ViT
from fedmed_common.models.parts.tokens import (
    HEAD_WIDTH,
    Pieces,
    blocks,
    heads_of,
    initialise_tokens,
    parameter,
)

SIZES = {"base": (12, 12), "large": (24, 16), "huge": (32, 16)}
"""Layers and heads. A head is 64 wide, but 80 in the huge one."""
HUGE_HEAD = 80


class Network(nn.Module):
    """Class token and pieces, through the encoder; the class token's logits."""

    def __init__(self, model: ViT, plan: Plan) -> None:
        super().__init__()
        layers, published = SIZES[model.variant]
        heads = heads_of(published, model.width)
        dimension = heads * (HUGE_HEAD if model.variant == "huge" else HEAD_WIDTH)
        self.patch_embed = Pieces(plan, model.piece, dimension)
        self.cls_token = parameter(1, 1, dimension)
        self.pos_embed = parameter(1, 1 + self.patch_embed.number, dimension)
        self.pos_drop = nn.Dropout(model.dropout)
        self.blocks = blocks(model.layers or layers, dimension, heads, model.dropout, model.drop_path)
        self.norm = nn.LayerNorm(dimension, eps=1e-6)
        self.head = nn.Linear(dimension, plan.outputs)

    def forward(self, image: Tensor) -> Tensor:
        pieces = self.patch_embed(image)
        tokens = torch.cat([self.cls_token.expand(pieces.shape[0], -1, -1), pieces], dim=1)
        encoded = self.norm(self.blocks(self.pos_drop(tokens + self.pos_embed)))
        logits: Tensor = self.head(encoded[:, 0])
        return logits


def build(model: ViT, plan: Plan) -> nn.Module:
    """``(B, in_channels, *patch)`` to logits ``(B, outputs)``."""
    network = Network(model, plan)
    initialise_tokens(network)
    return network
