"""V-Net (Milletari et al. 2016, section 2 and figure 2), in 2D and 3D.

A stage's convolutions see 5 voxels per axis; what the stage began with is added to what they made, and strided convolutions take
the place of pools. The paper has no norm: ours has one after each convolution, in place of its bias. The paper's image has one
channel, which it adds to each of the first stage's; ours takes the image's channels in turn. Weights are drawn as in He et al.
2015, the paper's source for its PReLU; it does not say how its own were.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from fedmed_common.catalogue.base import Plan
from fedmed_common.catalogue.unets import VNet
from fedmed_common.models.parts.convolutions import CONVOLUTION, convolution
from fedmed_common.models.parts.norms import make_norm
from fedmed_common.models.parts.ushape import he_normal, up_convolution

KERNEL = 5


def _activation(model: VNet, channels: int) -> nn.Module:
    return nn.PReLU(channels) if model.activation == "prelu" else nn.ELU()


class Stage(nn.Module):
    """``count`` convolutions of ``channels`` features on ``(B, entering, *S)``; their sum with ``start``; activated."""

    def __init__(self, model: VNet, dimensions: int, entering: int, channels: int, count: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for place in range(count):
            layers += [_activation(model, channels)] if place else []
            layers += [
                convolution(dimensions, channels if place else entering, channels, KERNEL),
                make_norm(model.norm, channels, dimensions),
            ]
        self.convolutions = nn.Sequential(*layers)
        self.activation = _activation(model, channels)
        drop = nn.Dropout2d if dimensions == 2 else nn.Dropout3d
        self.dropout = drop(model.dropout)

    def forward(self, maps: Tensor, start: Tensor) -> Tensor:
        result: Tensor = self.dropout(self.activation(self.convolutions(maps) + start))
        return result


class Network(nn.Module):
    """``left`` stages finest first, ``right`` stages coarsest first; a right one keeps all features it is given."""

    def __init__(self, model: VNet, plan: Plan) -> None:
        super().__init__()
        sizes, dimensions = model.channels, plan.dimensions

        def resampled(layer: nn.Module, channels: int) -> nn.Module:
            norm = make_norm(model.norm, channels, dimensions)
            return nn.Sequential(layer, norm, _activation(model, channels))

        self.channels = sizes[0]
        entering = (plan.in_channels, *sizes[1:])
        self.left = nn.ModuleList(
            Stage(model, dimensions, *numbers)
            for numbers in zip(entering, sizes, model.convolutions, strict=True)
        )
        self.down = nn.ModuleList(
            resampled(CONVOLUTION[dimensions](fine, coarse, 2, stride=2, bias=False), coarse)
            for fine, coarse in pairwise(sizes)
        )
        kept = [2 * size for size in sizes[:-1]]
        self.up = nn.ModuleList(
            resampled(up_convolution(dimensions, below, fine, bias=False), fine)
            for below, fine in zip([sizes[-1], *kept[:0:-1]], reversed(sizes[:-1]), strict=True)
        )
        self.right = nn.ModuleList(
            Stage(model, dimensions, channels, channels, count)
            for channels, count in zip(reversed(kept), reversed(model.convolutions_up), strict=True)
        )
        self.head = convolution(dimensions, kept[0], plan.outputs, 1, bias=True)
        he_normal(self)

    def forward(self, image: Tensor) -> Tensor:
        copies = -(-self.channels // image.shape[1])
        start = torch.cat([image] * copies, dim=1)[:, : self.channels]
        maps = self.left[0](image, start)
        skips: list[Tensor] = []
        for down, stage in zip(self.down, self.left[1:], strict=True):
            skips.append(maps)
            start = down(maps)
            maps = stage(start, start)
        for up, stage in zip(self.up, self.right, strict=True):
            start = torch.cat([up(maps), skips.pop()], dim=1)
            maps = stage(start, start)
        logits: Tensor = self.head(maps)
        return logits


def build(model: VNet, plan: Plan) -> nn.Module:
    """``(B, in_channels, *patch)`` to logits ``(B, outputs, *patch)``."""
    return Network(model, plan)
