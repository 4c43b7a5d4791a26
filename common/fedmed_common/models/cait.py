"""CaiT (Touvron et al. 2021, ICCV, sections 2 and 3, table 3), in 2D and, with cubes for squares, in 3D.

LayerScale (equation 4), attention with talking heads, and two layers of class attention (equations 5 to 8). Its norms are layer
norms.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fedmed_common.catalogue.base import Plan
from fedmed_common.catalogue.classification import CaiT
from fedmed_common.models.parts.drop_path import DropPath
from fedmed_common.models.parts.tokens import Mlp, Pieces, heads_of, initialise_tokens, parameter

HEADS = {"xxs": 4, "xs": 6, "s": 8, "m": 16}
HEAD_WIDTH = 48
CLASS_LAYERS = 2
SCALES = ((18, 0.1), (24, 1e-5), (48, 1e-6))
"""Up to how many layers LayerScale begins with which number (section 2)."""


class TalkingHeads(nn.Module):
    """Self-attention whose heads are mixed before and after the softmax (Shazeer et al. 2020)."""

    def __init__(self, dimension: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dimension, 3 * dimension)
        self.proj = nn.Linear(dimension, dimension)
        self.proj_l = nn.Linear(heads, heads)
        self.proj_w = nn.Linear(heads, heads)
        self.drop = nn.Dropout(dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        batch, number, dimension = tokens.shape
        split = self.qkv(tokens).reshape(batch, number, 3, self.heads, dimension // self.heads)
        query, key, value = split.permute(2, 0, 3, 1, 4).unbind(0)
        scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
        mixed = self.proj_l(scores.permute(0, 2, 3, 1)).softmax(dim=-2)
        weights = self.drop(self.proj_w(mixed).permute(0, 3, 1, 2))
        result: Tensor = self.proj((weights @ value).transpose(1, 2).reshape(batch, number, dimension))
        return result


class ClassAttention(nn.Module):
    """The class token asks, all tokens answer."""

    def __init__(self, dimension: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(dimension, dimension)
        self.k = nn.Linear(dimension, dimension)
        self.v = nn.Linear(dimension, dimension)
        self.proj = nn.Linear(dimension, dimension)
        self.drop = nn.Dropout(dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        batch, _, dimension = tokens.shape
        query = self._split(self.q(tokens[:, :1])) * (dimension // self.heads) ** -0.5
        weights = self.drop((query @ self._split(self.k(tokens)).transpose(-2, -1)).softmax(dim=-1))
        mixed = (weights @ self._split(self.v(tokens))).transpose(1, 2).reshape(batch, 1, dimension)
        result: Tensor = self.proj(mixed)
        return result

    def _split(self, tokens: Tensor) -> Tensor:
        batch, number, dimension = tokens.shape
        return tokens.reshape(batch, number, self.heads, dimension // self.heads).transpose(1, 2)


class Scaled(nn.Module):
    """Attention and a perceptron, each scaled by channel before it is added."""

    def __init__(
        self, dimension: int, attention: nn.Module, scale: float, dropout: float, drop_path: float
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dimension, eps=1e-6)
        self.attn = attention
        self.norm2 = nn.LayerNorm(dimension, eps=1e-6)
        self.mlp = Mlp(dimension, dropout)
        self.gamma_1 = nn.Parameter(torch.full((dimension,), scale))
        self.gamma_2 = nn.Parameter(torch.full((dimension,), scale))
        self.drop_path = DropPath(drop_path)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.drop_path(self.gamma_1 * self.attn(self.norm1(tokens)))
        result: Tensor = tokens + self.drop_path(self.gamma_2 * self.mlp(self.norm2(tokens)))
        return result


class ClassLayer(Scaled):
    """The same for the class token alone, which stands first."""

    def forward(self, tokens: Tensor) -> Tensor:
        klass = tokens[:, :1] + self.drop_path(self.gamma_1 * self.attn(self.norm1(tokens)))
        klass = klass + self.drop_path(self.gamma_2 * self.mlp(self.norm2(klass)))
        return torch.cat([klass, tokens[:, 1:]], dim=1)


class Network(nn.Module):
    """Pieces through self-attention, then the class token through class attention."""

    def __init__(self, model: CaiT, plan: Plan) -> None:
        super().__init__()
        size, published = model.variant[:-2], int(model.variant[-2:])
        heads, layers = heads_of(HEADS[size], model.width), model.layers or published
        dimension, dropout = heads * HEAD_WIDTH, model.dropout
        scale = next(scale for most, scale in SCALES if published <= most)
        self.patch_embed = Pieces(plan, model.piece, dimension)
        self.cls_token = parameter(1, 1, dimension)
        self.pos_embed = parameter(1, self.patch_embed.number, dimension)
        self.pos_drop = nn.Dropout(dropout)
        self.blocks = nn.Sequential(
            *(
                Scaled(dimension, TalkingHeads(dimension, heads, dropout), scale, dropout, model.drop_path)
                for _ in range(layers)
            )
        )
        self.blocks_token_only = nn.Sequential(
            *(
                ClassLayer(dimension, ClassAttention(dimension, heads, dropout), scale, dropout, 0.0)
                for _ in range(CLASS_LAYERS)
            )
        )
        self.norm = nn.LayerNorm(dimension, eps=1e-6)
        self.head = nn.Linear(dimension, plan.outputs)

    def forward(self, image: Tensor) -> Tensor:
        pieces = self.blocks(self.pos_drop(self.patch_embed(image) + self.pos_embed))
        tokens = torch.cat([self.cls_token.expand(pieces.shape[0], -1, -1), pieces], dim=1)
        logits: Tensor = self.head(self.norm(self.blocks_token_only(tokens))[:, 0])
        return logits


def build(model: CaiT, plan: Plan) -> nn.Module:
    """``(B, in_channels, *patch)`` to logits ``(B, outputs)``."""
    network = Network(model, plan)
    initialise_tokens(network)
    return network
