"""AlexNet in one column (Krizhevsky 2014, section 5; Krizhevsky et al. 2012, section 3), layer names as torchvision has them.

Without the local response normalisation of 2012, which 2014 left out; ``normalise`` puts a norm after each convolution instead.
"""

from __future__ import annotations

from torch import nn

from fedmed_common.catalogue.base import Plan
from fedmed_common.catalogue.classification import AlexNet
from fedmed_common.models.parts.classifier import FullyConnected
from fedmed_common.models.parts.convolutions import scaled
from fedmed_common.models.parts.norms import make_norm

LAYERS = ((64, 11, 4, 2), (192, 5, 1, 2), (384, 3, 1, 1), (256, 3, 1, 1), (256, 3, 1, 1))
"""Channels, kernel, stride, padding."""
POOLED = (0, 1, 4)
GRID, HIDDEN = 6, 4096


def build(model: AlexNet, plan: Plan) -> nn.Module:
    """``(B, in_channels, *patch)`` to logits ``(B, outputs)``."""
    layers: list[nn.Module] = []
    entering = plan.in_channels
    for place, (channels, kernel, stride, padding) in enumerate(LAYERS):
        leaving = scaled(channels, model.width)
        layers.append(nn.Conv2d(entering, leaving, kernel, stride, padding))
        if model.normalise:
            layers.append(make_norm(model.norm, leaving, 2))
        layers.append(nn.ReLU())
        if place in POOLED:
            layers.append(nn.MaxPool2d(3, 2))
        entering = leaving
    return FullyConnected(
        nn.Sequential(*layers), entering, GRID, scaled(HIDDEN, model.width), plan.outputs, model.dropout
    )
