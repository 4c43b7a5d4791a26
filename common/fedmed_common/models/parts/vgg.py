"""The convolutions of VGG-16 (Simonyan and Zisserman 2015, table 1, column D), with a norm after each in place of its bias."""

from __future__ import annotations

from torch import nn

from fedmed_common.catalogue.base import Norm
from fedmed_common.models.parts.convolutions import normed, scaled

STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
"""Features of each convolution; a pool follows each stage."""


def vgg16(dimensions: int, in_channels: int, norm: Norm, width: float) -> list[nn.Sequential]:
    """The five stages without their pools: stage ``i`` works at stride ``2 ** i``."""
    stages = []
    entering = in_channels
    for features in STAGES:
        stage = nn.Sequential()
        for number in features:
            stage.append(normed(dimensions, entering, scaled(number, width), 3, norm))
            entering = scaled(number, width)
        stages.append(stage)
    return stages
