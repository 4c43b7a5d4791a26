"""PSPNet (Zhao et al. 2017, section 3.2 and figure 3) on a ResNet dilated to stride 8, in 2D and 3D.

Means over 1, 2, 3 and 6 parts per axis, each reduced to a quarter of the features, stand beside the features themselves. While
training, the third stage gives logits too (section 3.3). Where the norm is instance norm, the level of one part has a group norm,
since an instance norm leaves nothing of one voxel; batch norm needs two patches at a time there. Our ResNet begins with one 7x7
convolution, as He et al. 2016, where the authors' has three of 3x3.
"""

from __future__ import annotations

from math import gcd
from typing import Literal

import torch
from torch import Tensor, nn

from fedmed_common.catalogue.base import Norm, Plan
from fedmed_common.catalogue.fully_convolutional import PSPNet
from fedmed_common.models.backbones.resnet import ResNet
from fedmed_common.models.parts.convolutions import convolution, initialise, normed, resized, scaled
from fedmed_common.models.parts.norms import GROUPS

DEPTHS: dict[str, Literal[50, 101]] = {"resnet50": 50, "resnet101": 101}
JOINED = 512
AUXILIARY = 256


def parts_mean(maps: Tensor, parts: int) -> Tensor:
    """``(B, C, *S)`` to ``(B, C, parts, ...)``: adaptive average pooling, as one matrix product per axis.

    Torch's own adds up in no determined order when its gradient is taken on a GPU.
    """
    for axis in range(2, maps.ndim):
        size = maps.shape[axis]
        matrix = maps.new_tensor(_shares(size, parts))
        maps = torch.movedim(torch.tensordot(maps, matrix, dims=([axis], [1])), -1, axis)
    return maps


def _shares(size: int, parts: int) -> list[list[float]]:
    """Row ``i``: the weights of an axis' voxels in the mean of its part ``i``."""
    rows = []
    for part in range(parts):
        first, last = part * size // parts, -(-(part + 1) * size // parts)
        rows.append([1 / (last - first) if first <= place < last else 0.0 for place in range(size)])
    return rows


class Pyramid(nn.Module):
    """``(B, channels, *S)`` and, beside it, what its parts are on average: twice as many channels."""

    def __init__(self, dimensions: int, channels: int, bins: tuple[int, ...], norm: Norm) -> None:
        super().__init__()
        self.bins = bins
        self.channels = channels // len(bins)
        levels = [normed(dimensions, channels, self.channels, 1, norm) for _ in bins]
        for level, parts in zip(levels, bins, strict=True):
            if parts == 1 and norm == "instance":
                level[1] = nn.GroupNorm(gcd(GROUPS, max(1, self.channels // 2)), self.channels)
        self.levels = nn.ModuleList(levels)

    def forward(self, maps: Tensor) -> Tensor:
        levels = zip(self.levels, self.bins, strict=True)
        means = [resized(level(parts_mean(maps, parts)), maps) for level, parts in levels]
        return torch.cat([maps, *means], dim=1)


class Network(nn.Module):
    """Logits; while training and with an auxiliary loss, also those of the third stage, at full resolution too."""

    def __init__(self, model: PSPNet, plan: Plan) -> None:
        super().__init__()
        dimensions = plan.dimensions
        self.backbone = ResNet(
            DEPTHS[model.variant],
            plan.in_channels,
            dimensions,
            model.norm,
            width=model.width,
            output_stride=8,
        )
        third, fourth = self.backbone.channels[-2:]
        joined, between = scaled(JOINED, model.width), scaled(AUXILIARY, model.width)
        self.pyramid = Pyramid(dimensions, fourth, model.bins, model.norm)
        entering = fourth + len(model.bins) * self.pyramid.channels
        self.join = nn.Sequential(
            normed(dimensions, entering, joined, 3, model.norm), nn.Dropout(model.dropout)
        )
        self.head = convolution(dimensions, joined, plan.outputs, 1, bias=True)
        self.auxiliary: nn.Module | None = None
        if model.auxiliary:
            self.output_weights = (1.0, model.auxiliary)
            self.auxiliary = nn.Sequential(
                normed(dimensions, third, between, 3, model.norm), nn.Dropout(model.dropout)
            )
            self.auxiliary_head = convolution(dimensions, between, plan.outputs, 1, bias=True)
        initialise(self)

    def forward(self, image: Tensor) -> Tensor | tuple[Tensor, ...]:
        *_, third, fourth = self.backbone(image)
        logits = resized(self.head(self.join(self.pyramid(fourth))), image)
        if self.auxiliary is None or not self.training:
            return logits
        return logits, resized(self.auxiliary_head(self.auxiliary(third)), image)


def build(model: PSPNet, plan: Plan) -> nn.Module:
    """``(B, in_channels, *patch)`` to logits ``(B, outputs, *patch)``."""
    return Network(model, plan)
