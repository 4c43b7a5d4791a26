"""VGG-16 (Simonyan and Zisserman 2015, configuration D) without its linear layers, as DeepLab v1 and v2 dilate it, in 2D and 3D.

Its last two pools no longer stride and its last three convolutions dilate by 2, so that maps stay at stride 8 (Chen et al. 2015,
'Semantic image segmentation with deep convolutional nets and fully connected CRFs', section 3.1). Pools see 3 voxels per axis, as
in the authors' code, not 2. Names are torchvision's (features.0, features.2, ...), with a norm those of its ``vgg16_bn``.
"""

from __future__ import annotations

from torch import Tensor, nn

from fedmed_common.catalogue.base import Norm
from fedmed_common.models.parts.convolutions import MAX_POOL, convolution, initialise, scaled
from fedmed_common.models.parts.norms import make_norm

STAGES = ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512))
"""Of each stage: convolutions, channels."""

OUTPUT_STRIDE = 8


class DilatedVGG16(nn.Module):
    """Maps ``(B, channels, *S / 8)``, sizes rounded up. ``norm``: after each convolution; None: none, as published."""

    def __init__(self, in_channels: int, dimensions: int, norm: Norm | None, *, width: float = 1.0) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        entering, reached, dilation = in_channels, 1, 1
        for convolutions, number in STAGES:
            channels = scaled(number, width)
            for _ in range(convolutions):
                layers.append(convolution(dimensions, entering, channels, 3, dilation=dilation, bias=True))
                if norm is not None:
                    layers.append(make_norm(norm, channels, dimensions))
                layers.append(nn.ReLU())
                entering = channels
            stride = 2 if reached < OUTPUT_STRIDE else 1
            layers.append(MAX_POOL[dimensions](3, stride=stride, padding=1))
            dilation = 2 if reached == OUTPUT_STRIDE else 1
            reached *= stride
        self.features = nn.Sequential(*layers)
        self.channels = entering
        initialise(self)

    def forward(self, image: Tensor) -> Tensor:
        maps: Tensor = self.features(image)
        return maps
