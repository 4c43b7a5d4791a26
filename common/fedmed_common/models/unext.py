"""UNeXt (Valanarasu and Patel 2022), after the authors' code: sizes, order of layers and initial weights.

Three convolutional levels, then two whose maps are read as tokens and mixed by MLPs, the features of which are shifted along one
axis and then the other (section 2, 'shifted MLP'). Layer norms of the tokens stay; the paper's batch norms are what
``model.norm`` says.
"""

from __future__ import annotations

from math import sqrt

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, max_pool2d, pad, relu

from fedmed_common.catalogue.base import Plan
from fedmed_common.catalogue.unets_modern import UNeXt
from fedmed_common.models.parts.norms import make_norm

SHIFTS = (-2, -1, 0, 1, 2)
"""In voxels, one for each fifth of the features."""


def build(model: UNeXt, plan: Plan) -> nn.Module:
    """``(B, in_channels, *patch)`` to logits ``(B, outputs, *patch)``."""
    network = TokenizedUNet(model, plan)
    mixing = [layer for part in network.modules() if isinstance(part, Token) for layer in part.modules()]
    for layer in mixing:
        if isinstance(layer, nn.Linear):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.Conv2d) and layer.bias is not None:
            fan_out = layer.kernel_size[0] * layer.kernel_size[1] * layer.out_channels // layer.groups
            nn.init.normal_(layer.weight, std=sqrt(2.0 / fan_out))
            nn.init.zeros_(layer.bias)
    return network


def shifted(maps: Tensor, axis: int) -> Tensor:
    """Each fifth of the features ``(B, C, H, W)`` moved along an axis by its own number of voxels; zeros come in."""
    size, margin = maps.shape[axis], max(SHIFTS)
    around = (0, 0, margin, margin) if axis == 2 else (margin, margin)
    fifths = torch.chunk(pad(maps, around), len(SHIFTS), dim=1)
    return torch.cat(
        [fifth.narrow(axis, margin - shift, size) for fifth, shift in zip(fifths, SHIFTS, strict=False)],
        dim=1,
    )


def tokens(maps: Tensor) -> Tensor:
    """``(B, C, H, W)`` to ``(B, H, W, C)``."""
    return maps.permute(0, 2, 3, 1)


def maps_of(tokens_BHWC: Tensor) -> Tensor:
    """``(B, H, W, C)`` to ``(B, C, H, W)``."""
    return tokens_BHWC.permute(0, 3, 1, 2)


class Token(nn.Module):
    """What the authors call a tokenized MLP block: norm, shifted MLP with a depthwise convolution, residual, norm.

    ``embed``: channels of the maps that a strided convolution makes tokens of; absent, the maps are tokens as they are.
    """

    def __init__(self, channels: int, dropout: float, *, embed: int | None = None) -> None:
        super().__init__()
        self.embed = (
            nn.Conv2d(embed, channels, 3, stride=2, padding=1) if embed is not None else nn.Identity()
        )
        self.norm_embed = nn.LayerNorm(channels) if embed is not None else nn.Identity()
        self.norm_before = nn.LayerNorm(channels)
        self.first = nn.Linear(channels, channels)
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.second = nn.Linear(channels, channels)
        self.dropout = nn.Dropout(dropout)
        self.norm_after = nn.LayerNorm(channels)

    def forward(self, maps: Tensor) -> Tensor:
        maps = maps_of(self.norm_embed(tokens(self.embed(maps))))
        mixed = shifted(maps_of(self.norm_before(tokens(maps))), axis=2)
        mixed = self.depthwise(maps_of(self.first(tokens(mixed))))
        mixed = shifted(self.dropout(nn.functional.gelu(mixed)), axis=3)
        mixed = maps_of(self.dropout(self.second(tokens(mixed))))
        return maps_of(self.norm_after(tokens(maps + mixed)))


class TokenizedUNet(nn.Module):
    """Five levels down, five up; features of the encoder are added, not concatenated."""

    def __init__(self, model: UNeXt, plan: Plan) -> None:
        super().__init__()
        c1, c2, c3, c4, c5 = model.channels
        self.down = nn.ModuleList(
            nn.Sequential(nn.Conv2d(before, after, 3, padding=1), make_norm(model.norm, after, 2))
            for before, after in ((plan.in_channels, c1), (c1, c2), (c2, c3))
        )
        self.fourth = Token(c4, model.dropout, embed=c3)
        self.bottom = Token(c5, model.dropout, embed=c4)
        self.up = nn.ModuleList(
            nn.Sequential(nn.Conv2d(before, after, 3, padding=1), make_norm(model.norm, after, 2))
            for before, after in ((c5, c4), (c4, c3), (c3, c2), (c2, c1))
        )
        self.mix = nn.ModuleList([Token(c4, model.dropout), Token(c3, model.dropout)])
        self.last = nn.Conv2d(c1, c1, 3, padding=1)
        self.head = nn.Conv2d(c1, plan.outputs, 1)

    def forward(self, image: Tensor) -> Tensor:
        maps, skips = image, []
        for level in self.down:
            maps = relu(max_pool2d(level(maps), 2))
            skips.append(maps)
        skips.append(self.fourth(maps))
        maps = self.bottom(skips[-1])
        for place, level in enumerate(self.up):
            maps = relu(_doubled(level(maps))) + skips.pop()
            if place < len(self.mix):
                maps = self.mix[place](maps)
        logits: Tensor = self.head(relu(_doubled(self.last(maps))))
        return logits


def _doubled(maps: Tensor) -> Tensor:
    return interpolate(maps, scale_factor=2.0, mode="bilinear", align_corners=False)
