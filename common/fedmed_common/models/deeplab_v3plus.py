"""DeepLab v3+ (Chen et al. 2018, ECCV, sections 3.1 and 4.1) on ResNet, aligned Xception-65 or MobileNetV2, in 2D and 3D.

DeepLab v3's pyramid, four times as fine, beside 48 features of the backbone at stride 4; two 3x3 convolutions with 256 features;
logits. Convolutions of pyramid and decoder are separable unless ``separable = false``. The one voxel of the image's mean has a
group norm whatever ``model.norm`` is. The authors' MobileNetV2 form has neither pyramid nor decoder; ours has both, and takes the
block's output at stride 4, 24 features.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from fedmed_common.catalogue.base import Plan
from fedmed_common.catalogue.deeplab import DeepLabV3Plus
from fedmed_common.models.backbones.aligned_xception import AlignedXception
from fedmed_common.models.backbones.mobilenet_v2 import MobileNetV2
from fedmed_common.models.backbones.resnet import ResNet
from fedmed_common.models.parts.aspp import Pyramid, separable_normed, small_head
from fedmed_common.models.parts.convolutions import initialise, normed, resized, scaled

DEPTHS: dict[str, Literal[18, 50, 101]] = {"resnet18": 18, "resnet50": 50, "resnet101": 101}
FEATURES = 256
FINER = 48
"""Features at stride 4 that the decoder sees."""


class Network(nn.Module):
    """``backbone``, ``pyramid``, ``finer``, ``decoder`` and ``head``."""

    def __init__(self, model: DeepLabV3Plus, plan: Plan) -> None:
        super().__init__()
        dimensions, norm = plan.dimensions, model.norm
        self.backbone = _backbone(model, plan)
        features, finer = scaled(FEATURES, model.width), scaled(FINER, model.width)
        self.pyramid = Pyramid(
            dimensions,
            norm,
            self.backbone.channels[-1],
            features,
            [rate * 16 // model.output_stride for rate in model.rates],
            separable=model.separable,
            dropout=model.dropout,
        )
        kind = separable_normed if model.separable else normed
        self.finer = normed(dimensions, self.backbone.channels[1], finer, 1, norm)
        self.decoder = nn.Sequential(
            kind(dimensions, features + finer, features, 3, norm),
            kind(dimensions, features, features, 3, norm),
        )
        initialise(self.finer)
        initialise(self.decoder)
        self.head = small_head(dimensions, features, plan.outputs)

    def forward(self, image: Tensor) -> Tensor:
        _, quarter, *_, coarsest = self.backbone(image)
        finer = self.finer(quarter)
        seen = torch.cat([resized(self.pyramid(coarsest), finer), finer], dim=1)
        return resized(self.head(self.decoder(seen)), image)


def _backbone(model: DeepLabV3Plus, plan: Plan) -> ResNet | AlignedXception | MobileNetV2:
    if model.backbone in DEPTHS:
        return ResNet(
            DEPTHS[model.backbone],
            plan.in_channels,
            plan.dimensions,
            model.norm,
            width=model.width,
            output_stride=model.output_stride,
        )
    kind = AlignedXception if model.backbone == "xception" else MobileNetV2
    return kind(
        plan.in_channels,
        plan.dimensions,
        model.norm,
        width=model.width,
        output_stride=model.output_stride,
    )


def build(model: DeepLabV3Plus, plan: Plan) -> nn.Module:
    """``(B, in_channels, *patch)`` to logits ``(B, outputs, *patch)``."""
    return Network(model, plan)
