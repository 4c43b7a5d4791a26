"""MobileNetV2 (Sandler et al. 2018, 'MobileNetV2: inverted residuals and linear bottlenecks', CVPR, table 2), in 2D and 3D.

Named as torchvision's (features.0.0, features.1.conv.0.0, ...), without the last 1x1 convolution, which only the classifier has.
"""

from __future__ import annotations

from torch import Tensor, nn

from fedmed_common.catalogue.base import Norm
from fedmed_common.models.backbones.resnet import OutputStride
from fedmed_common.models.parts.convolutions import convolution, initialise, scaled
from fedmed_common.models.parts.norms import make_norm

STEM = 32
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
"""Of each stage: expansion, channels, blocks, stride of the first block."""


class MobileNetV2(nn.Module):
    """Maps at strides 2, 4, 8, 16 and 32, ``(B, channels[i], *S / strides[i])``, finest first.

    ``output_stride`` 8 or 16 dilates in place of striding, as in ``ResNet``; ``width`` multiplies all channels.
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
        entering = scaled(STEM, width)
        layers: list[nn.Module] = [_layer(dimensions, norm, in_channels, entering, 3, stride=2)]
        published = reached = 2
        dilation, leaves = 1, {}
        for expansion, number, blocks, strides in STAGES:
            channels = scaled(number, width)
            for place in range(blocks):
                stride, before = 1, dilation
                if not place and strides == 2:
                    published *= 2
                    stride = 2 if reached < output_stride else 1
                    reached *= stride
                    dilation *= 2 // stride
                layers.append(
                    InvertedResidual(
                        dimensions,
                        norm,
                        entering,
                        channels,
                        expansion=expansion,
                        stride=stride,
                        dilation=before,
                    )
                )
                entering = channels
            leaves[published] = (len(layers) - 1, channels)
        self.features = nn.Sequential(*layers)
        self.channels = tuple(channels for _, channels in leaves.values())
        self.strides = tuple(min(stride, output_stride) for stride in leaves)
        self._leaves = frozenset(index for index, _ in leaves.values())
        initialise(self)

    def forward(self, image: Tensor) -> list[Tensor]:
        maps, below = [], image
        for index, layer in enumerate(self.features):
            below = layer(below)
            if index in self._leaves:
                maps.append(below)
        return maps


class InvertedResidual(nn.Module):
    """Widen by ``expansion``, a depthwise 3x3 convolution, narrow without activation; and what came in, where shapes agree."""

    def __init__(
        self,
        dimensions: int,
        norm: Norm,
        entering: int,
        leaving: int,
        *,
        expansion: int,
        stride: int,
        dilation: int,
    ) -> None:
        super().__init__()
        wide = entering * expansion
        layers: list[nn.Module] = []
        if expansion != 1:
            layers.append(_layer(dimensions, norm, entering, wide, 1))
        layers += [
            _layer(dimensions, norm, wide, wide, 3, stride=stride, dilation=dilation, groups=wide),
            convolution(dimensions, wide, leaving, 1),
            make_norm(norm, leaving, dimensions),
        ]
        self.conv = nn.Sequential(*layers)
        self._adds = stride == 1 and entering == leaving

    def forward(self, maps: Tensor) -> Tensor:
        result: Tensor = self.conv(maps)
        return maps + result if self._adds else result


def _layer(
    dimensions: int,
    norm: Norm,
    entering: int,
    leaving: int,
    kernel: int,
    *,
    stride: int = 1,
    dilation: int = 1,
    groups: int = 1,
) -> nn.Sequential:
    return nn.Sequential(
        convolution(dimensions, entering, leaving, kernel, stride=stride, dilation=dilation, groups=groups),
        make_norm(norm, leaving, dimensions),
        nn.ReLU6(),
    )
