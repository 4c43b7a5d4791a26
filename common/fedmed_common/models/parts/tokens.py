"""Encoders over tokens, as ViT, DeiT, CaiT and TransMed have them; layer names are those of the published PyTorch weights."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from fedmed_common.catalogue.base import Plan
from fedmed_common.models.parts.convolutions import CONVOLUTION
from fedmed_common.models.parts.drop_path import DropPath

HEAD_WIDTH = 64
EXPANSION = 4
DEVIATION = 0.02


def heads_of(published: int, width: float) -> int:
    """The number of attention heads; each is 64 wide."""
    return max(1, round(published * width))


class Pieces(nn.Module):
    """An image ``(B, C, *S)`` as tokens ``(B, N, dimension)``: a linear map of each cube of edge ``piece``."""

    def __init__(self, plan: Plan, piece: int, dimension: int) -> None:
        super().__init__()
        self.number = prod(size // piece for size in plan.patch)
        self.proj = CONVOLUTION[plan.dimensions](plan.in_channels, dimension, piece, stride=piece)

    def forward(self, image: Tensor) -> Tensor:
        tokens: Tensor = self.proj(image)
        return tokens.flatten(2).transpose(1, 2)


class Attention(nn.Module):
    """Multi-head self-attention (Vaswani et al. 2017, section 3.2)."""

    def __init__(self, dimension: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dimension, 3 * dimension)
        self.proj = nn.Linear(dimension, dimension)
        self.drop = nn.Dropout(dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        batch, number, dimension = tokens.shape
        split = self.qkv(tokens).reshape(batch, number, 3, self.heads, dimension // self.heads)
        query, key, value = split.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = scaled_dot_product_attention(query, key, value)
        result: Tensor = self.drop(self.proj(mixed.transpose(1, 2).reshape(batch, number, dimension)))
        return result


class Mlp(nn.Module):
    """Two linear layers with a GELU between them, four times as wide inside."""

    def __init__(self, dimension: int, dropout: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dimension, EXPANSION * dimension)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(EXPANSION * dimension, dimension)
        self.drop = nn.Dropout(dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        result: Tensor = self.drop(self.fc2(self.drop(self.act(self.fc1(tokens)))))
        return result


class Block(nn.Module):
    """Attention and a perceptron, each on normed tokens and added to them (Dosovitskiy et al. 2021, equations 2 and 3)."""

    def __init__(self, dimension: int, heads: int, dropout: float, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dimension, eps=1e-6)
        self.attn = Attention(dimension, heads, dropout)
        self.norm2 = nn.LayerNorm(dimension, eps=1e-6)
        self.mlp = Mlp(dimension, dropout)
        self.drop_path = DropPath(drop_path)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.drop_path(self.attn(self.norm1(tokens)))
        result: Tensor = tokens + self.drop_path(self.mlp(self.norm2(tokens)))
        return result


def blocks(number: int, dimension: int, heads: int, dropout: float, drop_path: float) -> nn.Sequential:
    """Blocks one after the other; the share of samples that skip one grows from nothing to ``drop_path``."""
    steps = max(1, number - 1)
    return nn.Sequential(
        *(Block(dimension, heads, dropout, drop_path * place / steps) for place in range(number))
    )


def parameter(*shape: int) -> nn.Parameter:
    """Small random numbers."""
    return nn.Parameter(nn.init.trunc_normal_(torch.empty(*shape), std=DEVIATION))


def initialise_tokens(network: nn.Module) -> None:
    """Linear layers from a truncated normal distribution of deviation 0.02, biases zero."""
    for layer in network.modules():
        if isinstance(layer, nn.Linear):
            nn.init.trunc_normal_(layer.weight, std=DEVIATION)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
