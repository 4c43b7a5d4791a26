"""HeMIS (Havaei et al. 2016, section 2) at each level of a U-Net (Dorent et al. 2019, section 2.3), in 2D and 3D.

Each modality has an encoder of its own. What the decoder sees of a level are the mean and the variance over the modalities that
are there; the variance of one is zero. So the network takes any of them, and the more there are, the more it knows. Both papers
train with modalities left out at random: ``data.modality_dropout``.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from fedmed_common.catalogue.base import Plan
from fedmed_common.catalogue.multimodal import HeMIS
from fedmed_common.models.parts.convolutions import convolution
from fedmed_common.models.parts.plain_unet import double
from fedmed_common.models.parts.present import present
from fedmed_common.models.parts.ushape import halving, up_convolution


def build(model: HeMIS, plan: Plan) -> nn.Module:
    """``(B, in_channels, *patch)``, a channel for each modality, to logits ``(B, outputs, *patch)``."""
    return Network(model, plan)


class Encoder(nn.Module):
    """One modality's way down."""

    def __init__(self, model: HeMIS, dimensions: int) -> None:
        super().__init__()
        self.stages = nn.ModuleList(
            double(dimensions, before, after, model.norm) for before, after in pairwise((1, *model.channels))
        )
        self.pool = halving(dimensions)

    def forward(self, image: Tensor) -> list[Tensor]:
        """What each stage gives, the finest first."""
        features: list[Tensor] = []
        for level, stage in enumerate(self.stages):
            features.append(stage(self.pool(features[-1]) if level else image))
        return features


class Network(nn.Module):
    """``encoders``: by modality. ``right``: the decoder's stages, the coarsest first."""

    def __init__(self, model: HeMIS, plan: Plan) -> None:
        super().__init__()
        dimensions, coarsest_first = plan.dimensions, list(pairwise(reversed(model.channels)))
        self.encoders = nn.ModuleList(Encoder(model, dimensions) for _ in range(plan.in_channels))
        self.dropout = nn.Dropout(model.dropout)
        self.up = nn.ModuleList(
            up_convolution(dimensions, below if level else 2 * below, here)
            for level, (below, here) in enumerate(coarsest_first)
        )
        self.right = nn.ModuleList(
            double(dimensions, 3 * here, here, model.norm) for _, here in coarsest_first
        )
        self.head = convolution(dimensions, model.channels[0], plan.outputs, 1, bias=True)

    def forward(self, image: Tensor) -> Tensor:
        """Logits."""
        there = present(image)
        each = [encoder(image[:, place : place + 1]) for place, encoder in enumerate(self.encoders)]
        *skips, maps = [together(torch.stack(of_level, 1), there) for of_level in zip(*each, strict=True)]
        maps = self.dropout(maps)
        for up, stage in zip(self.up, self.right, strict=True):
            maps = stage(torch.cat([skips.pop(), up(maps)], dim=1))
        logits: Tensor = self.head(maps)
        return logits


def together(features: Tensor, there: Tensor) -> Tensor:
    """``(B, 2F, *S)``: mean and variance of features ``(B, C, F, *S)`` over the modalities ``(B, C)`` that are there."""
    weight = there.reshape(*there.shape, *[1] * (features.ndim - 2))
    count = weight.sum(1).clamp(min=1)
    mean = (weight * features).sum(1) / count
    variance = (weight * (features - mean[:, None]) ** 2).sum(1) / count
    return torch.cat([mean, variance], dim=1)
