"""ResNet (He et al. 2016, 'Deep residual learning for image recognition', CVPR, table 1), in 2D and 3D.

As torchvision builds it, names included, so that published weights load by name: a bottleneck's stride is in its 3x3 convolution,
not in its first (Goyal et al. 2017, section 5.1). A norm of another kind than batch keeps the name ``bn``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

from torch import Tensor, nn

from fedmed_common.catalogue.base import Norm
from fedmed_common.models.parts.convolutions import MAX_POOL, convolution, initialise, scaled
from fedmed_common.models.parts.norms import make_norm

Depth = Literal[18, 34, 50, 101, 152]
OutputStride = Literal[8, 16, 32]
BLOCKS: dict[int, tuple[int, int, int, int]] = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}
"""Residual blocks of the four stages; from depth 50 on they are bottlenecks."""

STEM = 64
PLANES = (64, 128, 256, 512)
EXPANSION = 4
BOTTLENECKS_FROM = 50


class ResNet(nn.Module):
    """Maps of the stem and the four stages, ``(B, channels[i], *S / strides[i])``, finest first; sizes are rounded up.

    ``strides`` are 2, 4, 8, 16, 32; with ``output_stride`` 16 or 8 the last stages keep that resolution and dilate in place of
    striding, so that every kernel sees what it saw at stride 32. The first block of such a stage still has the dilation of the
    stage before: at each place that stride 32 looks at, the maps are equal. With ``multi_grid`` the last stage's blocks, the
    first included, have its dilation times these numbers in turn (Chen et al. 2017, 'Rethinking atrous convolution', section
    3.2.1). ``width`` multiplies all channels.
    """

    def __init__(
        self,
        depth: Depth,
        in_channels: int,
        dimensions: int,
        norm: Norm,
        *,
        width: float = 1.0,
        output_stride: OutputStride = 32,
        multi_grid: Sequence[int] = (),
    ) -> None:
        super().__init__()
        planes = [scaled(number, width) for number in PLANES]
        kind: type[BasicBlock | Bottleneck] = Bottleneck if depth >= BOTTLENECKS_FROM else BasicBlock
        entering = scaled(STEM, width)
        self.channels = (entering, *(number * kind.expansion for number in planes))
        self.strides = tuple(min(stride, output_stride) for stride in (2, 4, 8, 16, 32))
        self.conv1 = convolution(dimensions, in_channels, entering, 7, stride=2)
        self.bn1 = make_norm(norm, entering, dimensions)
        self.relu = nn.ReLU()
        self.maxpool = MAX_POOL[dimensions](3, stride=2, padding=1)
        stages = _stages(BLOCKS[depth], output_stride, multi_grid)
        for stage, ((stride, dilations), number) in enumerate(zip(stages, planes, strict=True), start=1):
            layers: list[nn.Module] = []
            for rate in dilations:
                first = 1 if layers else stride
                layers.append(kind(dimensions, norm, entering, number, stride=first, dilation=rate))
                entering = number * kind.expansion
            self.add_module(f"layer{stage}", nn.Sequential(*layers))
        initialise(self)

    def forward(self, image: Tensor) -> list[Tensor]:
        maps = [self.relu(self.bn1(self.conv1(image)))]
        below = self.maxpool(maps[0])
        for stage in range(1, len(PLANES) + 1):
            below = self.get_submodule(f"layer{stage}")(below)
            maps.append(below)
        return maps


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and what came in."""

    expansion = 1

    def __init__(
        self,
        dimensions: int,
        norm: Norm,
        entering: int,
        planes: int,
        *,
        stride: int,
        dilation: tuple[int, int],
    ) -> None:
        super().__init__()
        self.conv1 = convolution(dimensions, entering, planes, 3, stride=stride, dilation=dilation[0])
        self.bn1 = make_norm(norm, planes, dimensions)
        self.relu = nn.ReLU()
        self.conv2 = convolution(dimensions, planes, planes, 3, dilation=dilation[1])
        self.bn2 = make_norm(norm, planes, dimensions)
        self.downsample = _shortcut(dimensions, norm, entering, planes, stride)

    def forward(self, maps: Tensor) -> Tensor:
        inner = self.relu(self.bn1(self.conv1(maps)))
        inner = self.bn2(self.conv2(inner))
        result: Tensor = self.relu(inner + self.downsample(maps))
        return result


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions, and what came in."""

    expansion = EXPANSION

    def __init__(
        self,
        dimensions: int,
        norm: Norm,
        entering: int,
        planes: int,
        *,
        stride: int,
        dilation: tuple[int, int],
    ) -> None:
        super().__init__()
        leaving = planes * self.expansion
        self.conv1 = convolution(dimensions, entering, planes, 1)
        self.bn1 = make_norm(norm, planes, dimensions)
        self.conv2 = convolution(dimensions, planes, planes, 3, stride=stride, dilation=dilation[0])
        self.bn2 = make_norm(norm, planes, dimensions)
        self.conv3 = convolution(dimensions, planes, leaving, 1)
        self.bn3 = make_norm(norm, leaving, dimensions)
        self.relu = nn.ReLU()
        self.downsample = _shortcut(dimensions, norm, entering, leaving, stride)

    def forward(self, maps: Tensor) -> Tensor:
        inner = self.relu(self.bn1(self.conv1(maps)))
        inner = self.relu(self.bn2(self.conv2(inner)))
        inner = self.bn3(self.conv3(inner))
        result: Tensor = self.relu(inner + self.downsample(maps))
        return result


def _shortcut(dimensions: int, norm: Norm, entering: int, leaving: int, stride: int) -> nn.Module:
    if stride == 1 and entering == leaving:
        return nn.Identity()
    return nn.Sequential(
        convolution(dimensions, entering, leaving, 1, stride=stride), make_norm(norm, leaving, dimensions)
    )


def _stages(
    blocks: Sequence[int], output_stride: int, multi_grid: Sequence[int]
) -> Iterator[tuple[int, list[tuple[int, int]]]]:
    """Each stage's stride, and its blocks' dilations: before and after the convolution that strides."""
    reached, dilation = 4, 1
    for stage, number in enumerate(blocks):
        stride, before = 1, dilation
        if stage and reached < output_stride:
            stride, reached = 2, reached * 2
        elif stage:
            dilation *= 2
        if multi_grid and stage == len(blocks) - 1:
            rates = [dilation * multi_grid[place % len(multi_grid)] for place in range(number)]
            yield stride, [(rate, rate) for rate in rates]
        else:
            yield stride, [(before, dilation), *[(dilation, dilation)] * (number - 1)]
