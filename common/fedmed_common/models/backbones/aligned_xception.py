"""The modified aligned Xception-65 (Chen et al. 2018, 'Encoder-decoder with atrous separable convolution', figure 4).

It is deeper than Xception, strides in separable convolutions where that pools, and has norms after depthwise convolutions too. As
in the authors' code only the last block has a ReLU after those; the others have theirs before each separable convolution.
"""

from __future__ import annotations

from torch import Tensor, nn

from fedmed_common.catalogue.base import Norm
from fedmed_common.models.backbones.resnet import OutputStride
from fedmed_common.models.parts.convolutions import convolution, initialise, scaled
from fedmed_common.models.parts.norms import make_norm

MIDDLE = 16
"""Blocks of the middle flow."""


class AlignedXception(nn.Module):
    """Maps at strides 2, 4, 8, 16 and 32, ``(B, channels[i], *S / strides[i])``, finest first.

    Those at 4 and 8 are what the second and third entry block have before they stride: the first of them is what DeepLab v3+
    decodes with. ``output_stride`` 8 or 16 dilates in place of striding, as in ``ResNet``; ``width`` multiplies all channels.
    """

    def __init__(
        self,
        in_channels: int,
        dimensions: int,
        norm: Norm,
        *,
        width: float = 1.0,
        output_stride: OutputStride = 32,
    ) -> None:
        super().__init__()
        first, second, third, fourth, fifth, sixth, seventh, last = (
            scaled(number, width) for number in (32, 64, 128, 256, 728, 1024, 1536, 2048)
        )
        self.channels = (second, fourth, fifth, fifth, last)
        self.strides = tuple(min(stride, output_stride) for stride in (2, 4, 8, 16, 32))
        self.stem = nn.Sequential(
            convolution(dimensions, in_channels, first, 3, stride=2),
            make_norm(norm, first, dimensions),
            nn.ReLU(),
            convolution(dimensions, first, second, 3),
            make_norm(norm, second, dimensions),
            nn.ReLU(),
        )
        third_stride, exit_stride = 2 if output_stride > 8 else 1, 2 if output_stride > 16 else 1
        middle = 2 // third_stride
        self.entry1 = AlignedBlock(dimensions, norm, (second, third, third, third), stride=2)
        self.entry2 = AlignedBlock(dimensions, norm, (third, fourth, fourth, fourth), stride=2)
        self.entry3 = AlignedBlock(dimensions, norm, (fourth, fifth, fifth, fifth), stride=third_stride)
        self.middle = nn.Sequential(
            *(
                AlignedBlock(dimensions, norm, (fifth,) * 4, dilation=middle, projects=False)
                for _ in range(MIDDLE)
            )
        )
        self.exit1 = AlignedBlock(
            dimensions, norm, (fifth, fifth, sixth, sixth), stride=exit_stride, dilation=middle
        )
        leaving = middle * 2 // exit_stride
        self.exit2 = nn.Sequential(
            *(
                AlignedSeparable(dimensions, norm, entering, number, dilation=leaving, relu=True)
                for entering, number in ((sixth, seventh), (seventh, seventh), (seventh, last))
            )
        )
        initialise(self)

    def forward(self, image: Tensor) -> list[Tensor]:
        half = self.stem(image)
        quarter, below = self.entry2(self.entry1(half)[1])
        eighth, below = self.entry3(below)
        for block in self.middle:
            below = block(below)[1]
        return [half, quarter, eighth, below, self.exit2(self.exit1(below)[1])]


class AlignedSeparable(nn.Module):
    """Depthwise 3x3 and pointwise convolution, each with a norm; ReLU after both, or before the first."""

    def __init__(
        self,
        dimensions: int,
        norm: Norm,
        entering: int,
        leaving: int,
        *,
        stride: int = 1,
        dilation: int = 1,
        relu: bool = False,
    ) -> None:
        super().__init__()
        self.before = nn.Identity() if relu else nn.ReLU()
        self.after = nn.ReLU() if relu else nn.Identity()
        self.depthwise = convolution(
            dimensions, entering, entering, 3, stride=stride, dilation=dilation, groups=entering
        )
        self.depthwise_norm = make_norm(norm, entering, dimensions)
        self.pointwise = convolution(dimensions, entering, leaving, 1)
        self.pointwise_norm = make_norm(norm, leaving, dimensions)

    def forward(self, maps: Tensor) -> Tensor:
        inner = self.after(self.depthwise_norm(self.depthwise(self.before(maps))))
        result: Tensor = self.after(self.pointwise_norm(self.pointwise(inner)))
        return result


class AlignedBlock(nn.Module):
    """Three separable convolutions, the last of which strides, and what came in. Gives the second's maps and its own."""

    def __init__(
        self,
        dimensions: int,
        norm: Norm,
        channels: tuple[int, ...],
        *,
        stride: int = 1,
        dilation: int = 1,
        projects: bool = True,
    ) -> None:
        super().__init__()
        first, second, third, last = channels
        self.first = AlignedSeparable(dimensions, norm, first, second, dilation=dilation)
        self.second = AlignedSeparable(dimensions, norm, second, third, dilation=dilation)
        self.third = AlignedSeparable(dimensions, norm, third, last, stride=stride, dilation=dilation)
        self.shortcut: nn.Module = nn.Identity()
        if projects:
            self.shortcut = nn.Sequential(
                convolution(dimensions, first, last, 1, stride=stride), make_norm(norm, last, dimensions)
            )

    def forward(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        finer = self.second(self.first(maps))
        return finer, self.third(finer) + self.shortcut(maps)
