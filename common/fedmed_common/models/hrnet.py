"""HRNetV2 with its segmentation head (Wang et al. 2020, section 3), in 2D and 3D, as the official code builds it.

Upsampling is linear; logits at stride 4 are interpolated to the image. The paper's norm is batch norm; ours is what
``model.norm`` says. Weights are drawn as in the official classification code; those of the segmentation code presume ImageNet's.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from fedmed_common.catalogue.base import Norm, Plan
from fedmed_common.catalogue.fully_convolutional import HRNet
from fedmed_common.models.backbones.resnet import BasicBlock, Bottleneck
from fedmed_common.models.parts.convolutions import convolution, initialise, normed, resized, scaled
from fedmed_common.models.parts.norms import make_norm

STEM = 64
FIRST_BLOCKS = 4
FEATURES = {"w18": 18, "w32": 32, "w48": 48}


def _halved(dimensions: int, entering: int, leaving: int, norm: Norm) -> nn.Sequential:
    """A 3x3 convolution of stride 2 and its norm."""
    return nn.Sequential(
        convolution(dimensions, entering, leaving, 3, stride=2), make_norm(norm, leaving, dimensions)
    )


class Exchange(nn.Module):
    """The stream ``target`` as the sum of all, brought to its resolution and its features, and cut at zero."""

    def __init__(self, dimensions: int, channels: list[int], target: int, norm: Norm) -> None:
        super().__init__()
        self.target = target
        self.paths = nn.ModuleList(
            _path(dimensions, channels, source, target, norm) for source in range(len(channels))
        )

    def forward(self, streams: list[Tensor]) -> Tensor:
        own = streams[self.target]
        arrived = [resized(path(stream), own) for path, stream in zip(self.paths, streams, strict=True)]
        return torch.relu(sum(arrived[1:], arrived[0]))


def _path(dimensions: int, channels: list[int], source: int, target: int, norm: Norm) -> nn.Module:
    """From one stream to another: 1x1 to a finer one, 3x3 of stride 2 for each step to a coarser one."""
    if source == target:
        return nn.Identity()
    if source > target:
        return nn.Sequential(
            convolution(dimensions, channels[source], channels[target], 1),
            make_norm(norm, channels[target], dimensions),
        )
    steps = nn.Sequential()
    for _ in range(target - source - 1):
        steps.append(_halved(dimensions, channels[source], channels[source], norm)).append(nn.ReLU())
    return steps.append(_halved(dimensions, channels[source], channels[target], norm))


class Module(nn.Module):
    """Residual blocks in each stream, and an exchange between all."""

    def __init__(self, dimensions: int, channels: list[int], blocks: int, norm: Norm) -> None:
        super().__init__()
        self.streams = nn.ModuleList(
            nn.Sequential(
                *(
                    BasicBlock(dimensions, norm, number, number, stride=1, dilation=(1, 1))
                    for _ in range(blocks)
                )
            )
            for number in channels
        )
        self.exchanges = nn.ModuleList(
            Exchange(dimensions, channels, target, norm) for target in range(len(channels))
        )

    def forward(self, streams: list[Tensor]) -> list[Tensor]:
        deeper = [blocks(stream) for blocks, stream in zip(self.streams, streams, strict=True)]
        return [exchange(deeper) for exchange in self.exchanges]


class Network(nn.Module):
    """``begin[i]`` makes the streams that stage ``i`` starts with and its predecessor had not."""

    def __init__(self, model: HRNet, plan: Plan) -> None:
        super().__init__()
        dimensions, norm = plan.dimensions, model.norm
        finest = FEATURES[model.variant]
        channels = [scaled(finest * 2**stream, model.width) for stream in range(4)]
        stem = scaled(STEM, model.width)
        self.stem = nn.Sequential(
            *_halved(dimensions, plan.in_channels, stem, norm),
            nn.ReLU(),
            *_halved(dimensions, stem, stem, norm),
            nn.ReLU(),
        )
        entering = [stem] + [stem * Bottleneck.expansion] * (FIRST_BLOCKS - 1)
        self.first = nn.Sequential(
            *(Bottleneck(dimensions, norm, number, stem, stride=1, dilation=(1, 1)) for number in entering)
        )
        widest = stem * Bottleneck.expansion
        self.finest = normed(dimensions, widest, channels[0], 3, norm)
        self.begin = nn.ModuleList(
            _halved(dimensions, above, below, norm).append(nn.ReLU())
            for above, below in pairwise((widest, *channels[1:]))
        )
        self.stages = nn.ModuleList(
            nn.Sequential(*(Module(dimensions, channels[:streams], model.blocks, norm) for _ in range(count)))
            for streams, count in enumerate(model.modules, start=2)
        )
        self.join = nn.Sequential(
            convolution(dimensions, sum(channels), sum(channels), 1, bias=True),
            make_norm(norm, sum(channels), dimensions),
            nn.ReLU(),
        )
        self.head = convolution(dimensions, sum(channels), plan.outputs, 1, bias=True)
        initialise(self)

    def forward(self, image: Tensor) -> Tensor:
        maps = self.first(self.stem(image))
        streams = [self.finest(maps)]
        coarsest = maps
        for begin, stage in zip(self.begin, self.stages, strict=True):
            streams = stage([*streams, begin(coarsest)])
            coarsest = streams[-1]
        joined = torch.cat([resized(stream, streams[0]) for stream in streams], dim=1)
        return resized(self.head(self.join(joined)), image)


def build(model: HRNet, plan: Plan) -> nn.Module:
    """``(B, in_channels, *patch)`` to logits ``(B, outputs, *patch)``."""
    return Network(model, plan)
