"""DeepLab v3 (Chen et al. 2017, sections 3.2 and 3.3) on a dilated ResNet, in 2D and 3D.

The last stage has a multi-grid, then a pyramid of dilations with the image's mean, 256 features each, and logits, interpolated in
training too, as in the paper. The one voxel of the mean has a group norm whatever ``model.norm`` is. The paper's ResNet strides
in 1x1 convolutions, ours in 3x3 ones, as torchvision's, whose DeepLab v3 has one more 3x3 convolution before its logits.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from fedmed_common.catalogue.base import Plan
from fedmed_common.catalogue.deeplab import DeepLabV3
from fedmed_common.models.backbones.resnet import ResNet
from fedmed_common.models.parts.aspp import Pyramid, small_head
from fedmed_common.models.parts.convolutions import resized, scaled

DEPTHS: dict[str, Literal[18, 50, 101]] = {"resnet18": 18, "resnet50": 50, "resnet101": 101}
FEATURES = 256


class Network(nn.Module):
    """``backbone``, ``pyramid`` and ``head``."""

    def __init__(self, model: DeepLabV3, plan: Plan) -> None:
        super().__init__()
        self.backbone = ResNet(
            DEPTHS[model.backbone],
            plan.in_channels,
            plan.dimensions,
            model.norm,
            width=model.width,
            output_stride=model.output_stride,
            multi_grid=model.multi_grid,
        )
        features = scaled(FEATURES, model.width)
        self.pyramid = Pyramid(
            plan.dimensions,
            model.norm,
            self.backbone.channels[-1],
            features,
            [rate * 16 // model.output_stride for rate in model.rates],
            dropout=model.dropout,
        )
        self.head = small_head(plan.dimensions, features, plan.outputs)

    def forward(self, image: Tensor) -> Tensor:
        return resized(self.head(self.pyramid(self.backbone(image)[-1])), image)


def build(model: DeepLabV3, plan: Plan) -> nn.Module:
    """``(B, in_channels, *patch)`` to logits ``(B, outputs, *patch)``."""
    return Network(model, plan)
