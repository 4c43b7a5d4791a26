"""ResNet as a classifier (He et al. 2016, table 1), in 2D and 3D; layer names as torchvision has them, below ``backbone``."""

from __future__ import annotations

from torch import nn

from fedmed_common.catalogue.base import Plan
from fedmed_common.catalogue.classification import ResNetClassifier
from fedmed_common.models.backbones.resnet import ResNet
from fedmed_common.models.parts.classifier import PooledHead


def build(model: ResNetClassifier, plan: Plan) -> nn.Module:
    """``(B, in_channels, *patch)`` to logits ``(B, outputs)``."""
    backbone = ResNet(model.depth, plan.in_channels, plan.dimensions, model.norm, width=model.width)
    return PooledHead(backbone, backbone.channels[-1], plan.outputs, plan.dimensions)
