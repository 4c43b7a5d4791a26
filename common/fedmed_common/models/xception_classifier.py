"""Xception as a classifier (Chollet 2017, figure 5), in 2D and 3D. Without the paper's optional fully connected layers."""

from __future__ import annotations

from torch import nn

from fedmed_common.catalogue.base import Plan
from fedmed_common.catalogue.classification import XceptionClassifier
from fedmed_common.models.backbones.xception import Xception
from fedmed_common.models.parts.classifier import PooledHead


def build(model: XceptionClassifier, plan: Plan) -> nn.Module:
    """``(B, in_channels, *patch)`` to logits ``(B, outputs)``."""
    backbone = Xception(plan.in_channels, plan.dimensions, model.norm, width=model.width)
    return PooledHead(backbone, backbone.channels[-1], plan.outputs, plan.dimensions, model.dropout)
