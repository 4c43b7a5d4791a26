"""DeepLab v2 (Chen et al. 2018, TPAMI, section 3.2, ASPP-L) on ResNet or VGG-16 at stride 8, in 2D and 3D.

Each branch of the pyramid gives logits with its own dilation, and they are summed: on ResNet a branch is one 3x3 convolution, on
VGG-16 it is that and a wide 1x1 one before the logits (figure 7). The paper also takes the largest of the logits of three scaled
images; ours sees the image once. Logits are at full resolution in training too.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from fedmed_common.catalogue.base import Norm, Plan
from fedmed_common.catalogue.deeplab import DeepLabV2
from fedmed_common.models.backbones.resnet import ResNet
from fedmed_common.models.backbones.vgg16 import DilatedVGG16
from fedmed_common.models.parts.aspp import small_head
from fedmed_common.models.parts.convolutions import convolution, initialise, resized, scaled
from fedmed_common.models.parts.norms import make_norm

DEPTHS: dict[str, Literal[18, 50, 101]] = {"resnet18": 18, "resnet50": 50, "resnet101": 101}
WIDE = 1024


class Branch(nn.Module):
    """Logits at one dilation: ``wide`` is all before the head, nothing on ResNet."""

    def __init__(self, wide: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.wide, self.head = wide, head

    def forward(self, maps: Tensor) -> Tensor:
        logits: Tensor = self.head(self.wide(maps))
        return logits


class Network(nn.Module):
    """``backbone`` and ``branches``."""

    def __init__(self, model: DeepLabV2, plan: Plan) -> None:
        super().__init__()
        dimensions, outputs = plan.dimensions, plan.outputs
        if model.backbone == "vgg16":
            norm = model.norm if model.norms else None
            vgg = DilatedVGG16(plan.in_channels, dimensions, norm, width=model.width)
            wide = scaled(WIDE, model.width)
            self.backbone: nn.Module = vgg
            branches = [
                Branch(
                    _wide(dimensions, norm, vgg.channels, wide, rate, model.dropout),
                    small_head(dimensions, wide, outputs),
                )
                for rate in model.rates
            ]
        else:
            resnet = ResNet(
                DEPTHS[model.backbone],
                plan.in_channels,
                dimensions,
                model.norm,
                width=model.width,
                output_stride=8,
            )
            self.backbone = resnet
            branches = [
                Branch(nn.Identity(), small_head(dimensions, resnet.channels[-1], outputs, 3, dilation=rate))
                for rate in model.rates
            ]
        self.branches = nn.ModuleList(branches)

    def forward(self, image: Tensor) -> Tensor:
        maps = self.backbone(image)
        coarsest = maps[-1] if isinstance(maps, list) else maps
        first, *others = (branch(coarsest) for branch in self.branches)
        return resized(sum(others, start=first), image)


def _wide(
    dimensions: int, norm: Norm | None, entering: int, wide: int, rate: int, dropout: float
) -> nn.Module:
    layers: list[nn.Module] = []
    for channels, kernel, dilation in ((entering, 3, rate), (wide, 1, 1)):
        layers.append(convolution(dimensions, channels, wide, kernel, dilation=dilation, bias=True))
        layers += [make_norm(norm, wide, dimensions)] if norm is not None else []
        layers += [nn.ReLU(), nn.Dropout(dropout)]
    branch = nn.Sequential(*layers)
    initialise(branch)
    return branch


def build(model: DeepLabV2, plan: Plan) -> nn.Module:
    """``(B, in_channels, *patch)`` to logits ``(B, outputs, *patch)``."""
    return Network(model, plan)
