"""VGG (Simonyan and Zisserman 2015, table 1, columns A, B, D and E), layer names as torchvision has them without batch norm.

``normalise`` puts a norm after each convolution, which the paper does not have.
"""

from __future__ import annotations

from torch import nn

from fedmed_common.catalogue.base import Plan
from fedmed_common.catalogue.classification import VGG
from fedmed_common.models.parts.classifier import FullyConnected
from fedmed_common.models.parts.convolutions import scaled
from fedmed_common.models.parts.norms import make_norm

CHANNELS = (64, 128, 256, 512, 512)
CONVOLUTIONS: dict[int, tuple[int, ...]] = {
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}
GRID, HIDDEN = 7, 4096


def build(model: VGG, plan: Plan) -> nn.Module:
    """``(B, in_channels, *patch)`` to logits ``(B, outputs)``."""
    layers: list[nn.Module] = []
    entering = plan.in_channels
    for number, channels in zip(CONVOLUTIONS[model.depth], CHANNELS, strict=True):
        leaving = scaled(channels, model.width)
        for _ in range(number):
            convolution = nn.Conv2d(entering, leaving, 3, padding=1)
            nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
            layers.append(convolution)
            if model.normalise:
                layers.append(make_norm(model.norm, leaving, 2))
            layers.append(nn.ReLU())
            entering = leaving
        layers.append(nn.MaxPool2d(2, 2))
    return FullyConnected(
        nn.Sequential(*layers), entering, GRID, scaled(HIDDEN, model.width), plan.outputs, model.dropout
    )
