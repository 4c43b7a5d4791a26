"""DeiT (Touvron et al. 2021, ICML, sections 3 and 4, table 1), in 2D and, with cubes for squares, in 3D.

With ``distilled`` there is a second token with a head of its own, and prediction is the mean of both (section 4, 'Joint
classifiers'). The paper teaches that head by another network; here both learn from the labels. Its norms are layer norms.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fedmed_common.catalogue.base import Plan
from fedmed_common.catalogue.classification import DeiT
from fedmed_common.models.parts.tokens import (
    HEAD_WIDTH,
    Pieces,
    blocks,
    heads_of,
    initialise_tokens,
    parameter,
)

HEADS = {"tiny": 3, "small": 6, "base": 12}
LAYERS = 12


class Network(nn.Module):
    """One or two tokens before the pieces, through the encoder."""

    def __init__(self, model: DeiT, plan: Plan) -> None:
        super().__init__()
        heads = heads_of(HEADS[model.variant], model.width)
        dimension = heads * HEAD_WIDTH
        self.patch_embed = Pieces(plan, model.piece, dimension)
        self.cls_token = parameter(1, 1, dimension)
        self.dist_token = parameter(1, 1, dimension) if model.distilled else None
        self.pos_embed = parameter(1, 1 + model.distilled + self.patch_embed.number, dimension)
        self.pos_drop = nn.Dropout(model.dropout)
        self.blocks = blocks(model.layers or LAYERS, dimension, heads, model.dropout, model.drop_path)
        self.norm = nn.LayerNorm(dimension, eps=1e-6)
        self.head = nn.Linear(dimension, plan.outputs)
        self.head_dist = nn.Linear(dimension, plan.outputs) if model.distilled else None
        self.output_weights = (0.5, 0.5) if model.distilled else (1.0,)

    def forward(self, image: Tensor) -> Tensor | tuple[Tensor, ...]:
        pieces = self.patch_embed(image)
        extra = [token for token in (self.cls_token, self.dist_token) if token is not None]
        tokens = torch.cat([*(token.expand(pieces.shape[0], -1, -1) for token in extra), pieces], dim=1)
        encoded = self.norm(self.blocks(self.pos_drop(tokens + self.pos_embed)))
        logits: Tensor = self.head(encoded[:, 0])
        if self.head_dist is None:
            return logits
        second: Tensor = self.head_dist(encoded[:, 1])
        return (logits, second) if self.training else (logits + second) / 2


def build(model: DeiT, plan: Plan) -> nn.Module:
    """``(B, in_channels, *patch)`` to logits ``(B, outputs)``; distilled and in training two of them."""
    network = Network(model, plan)
    initialise_tokens(network)
    return network
