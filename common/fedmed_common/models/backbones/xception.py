"""Xception (Chollet 2017, 'Xception: deep learning with depthwise separable convolutions', CVPR, figure 5), in 2D and 3D.

Names are those of Cadene's PyTorch weights (conv1, block1.rep..., conv4). Chollet's code has no padding in the first two
convolutions; ours has, so that maps are the image's size over their stride, rounded up. ``aligned_xception`` has the form that
DeepLab v3+ stands on.
"""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from fedmed_common.catalogue.base import Norm
from fedmed_common.models.parts.convolutions import MAX_POOL, convolution, initialise, scaled
from fedmed_common.models.parts.norms import make_norm

MIDDLE = 8
"""Blocks of the middle flow."""


class Xception(nn.Module):
    """Maps at strides 2, 4, 8, 16 and 32, ``(B, channels[i], *S / strides[i])``, finest first; the last is the exit flow's.

    ``width`` multiplies all channels.
    """

    strides = (2, 4, 8, 16, 32)

    def __init__(self, in_channels: int, dimensions: int, norm: Norm, *, width: float = 1.0) -> None:
        super().__init__()
        first, second, third, fourth, fifth, sixth, seventh, last = (
            scaled(number, width) for number in (32, 64, 128, 256, 728, 1024, 1536, 2048)
        )
        self.channels = (second, third, fourth, fifth, last)
        self.conv1 = convolution(dimensions, in_channels, first, 3, stride=2)
        self.bn1 = make_norm(norm, first, dimensions)
        self.conv2 = convolution(dimensions, first, second, 3)
        self.bn2 = make_norm(norm, second, dimensions)
        self.relu = nn.ReLU()
        self.block1 = Block(dimensions, norm, (second, third, third), stride=2, relu_first=False)
        self.block2 = Block(dimensions, norm, (third, fourth, fourth), stride=2)
        self.block3 = Block(dimensions, norm, (fourth, fifth, fifth), stride=2)
        for place in range(MIDDLE):
            self.add_module(f"block{4 + place}", Block(dimensions, norm, (fifth,) * 4))
        self.block12 = Block(dimensions, norm, (fifth, fifth, sixth), stride=2)
        self.conv3 = Separable(dimensions, sixth, seventh)
        self.bn3 = make_norm(norm, seventh, dimensions)
        self.conv4 = Separable(dimensions, seventh, last)
        self.bn4 = make_norm(norm, last, dimensions)
        initialise(self)

    def forward(self, image: Tensor) -> list[Tensor]:
        stem = self.relu(self.bn1(self.conv1(image)))
        maps = [self.relu(self.bn2(self.conv2(stem)))]
        for block in (self.block1, self.block2, self.block3):
            maps.append(block(maps[-1]))
        for place in range(MIDDLE):
            maps[-1] = self.get_submodule(f"block{4 + place}")(maps[-1])
        leaving = self.block12(maps[-1])
        leaving = self.relu(self.bn3(self.conv3(leaving)))
        return [*maps, self.relu(self.bn4(self.conv4(leaving)))]


class Separable(nn.Module):
    """A convolution of each channel alone, then one across channels; nothing in between."""

    def __init__(self, dimensions: int, entering: int, leaving: int) -> None:
        super().__init__()
        self.conv1 = convolution(dimensions, entering, entering, 3, groups=entering)
        self.pointwise = convolution(dimensions, entering, leaving, 1)

    def forward(self, maps: Tensor) -> Tensor:
        result: Tensor = self.pointwise(self.conv1(maps))
        return result


class Block(nn.Module):
    """ReLU, separable convolution and norm, as often as ``channels`` has steps; a pool where it strides; and what came in."""

    def __init__(
        self,
        dimensions: int,
        norm: Norm,
        channels: tuple[int, ...],
        *,
        stride: int = 1,
        relu_first: bool = True,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for entering, leaving in pairwise(channels):
            layers += [
                nn.ReLU(),
                Separable(dimensions, entering, leaving),
                make_norm(norm, leaving, dimensions),
            ]
        if stride > 1:
            layers.append(MAX_POOL[dimensions](3, stride=stride, padding=1))
        self.rep = nn.Sequential(*layers[0 if relu_first else 1 :])
        self.skip: nn.Module = nn.Identity()
        self.skipbn: nn.Module = nn.Identity()
        if stride > 1:
            self.skip = convolution(dimensions, channels[0], channels[-1], 1, stride=stride)
            self.skipbn = make_norm(norm, channels[-1], dimensions)

    def forward(self, maps: Tensor) -> Tensor:
        result: Tensor = self.rep(maps) + self.skipbn(self.skip(maps))
        return result
