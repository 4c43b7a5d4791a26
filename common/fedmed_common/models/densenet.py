"""DenseNet-BC (Huang et al. 2017, table 1; growth 32, compression 0.5), in 2D and 3D; layer names as torchvision has them."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from fedmed_common.catalogue.base import Norm, Plan
from fedmed_common.catalogue.classification import DenseNet
from fedmed_common.models.parts.convolutions import MAX_POOL, MEAN_OF_ALL, convolution, initialise, scaled
from fedmed_common.models.parts.norms import make_norm

BLOCKS: dict[int, tuple[int, ...]] = {121: (6, 12, 24, 16), 169: (6, 12, 32, 32), 201: (6, 12, 48, 32)}
GROWTH, STEM, BOTTLENECK = 32, 64, 4
MEAN_POOL: dict[int, type[nn.AvgPool2d | nn.AvgPool3d]] = {2: nn.AvgPool2d, 3: nn.AvgPool3d}


class Layer(nn.Module):
    """Norm, ReLU and convolution twice, of kernel 1 and 3; what comes out is set beside what came in."""

    def __init__(self, dimensions: int, entering: int, growth: int, norm: Norm, dropout: float) -> None:
        super().__init__()
        self.norm1 = make_norm(norm, entering, dimensions)
        self.relu = nn.ReLU()
        self.conv1 = convolution(dimensions, entering, BOTTLENECK * growth, 1)
        self.norm2 = make_norm(norm, BOTTLENECK * growth, dimensions)
        self.conv2 = convolution(dimensions, BOTTLENECK * growth, growth, 3)
        self.dropout = nn.Dropout(dropout)

    def forward(self, maps: Tensor) -> Tensor:
        inner = self.conv1(self.relu(self.norm1(maps)))
        return torch.cat([maps, self.dropout(self.conv2(self.relu(self.norm2(inner))))], dim=1)


class Network(nn.Module):
    """Features, their mean over all places, one linear layer."""

    def __init__(self, features: nn.Module, channels: int, dimensions: int, outputs: int) -> None:
        super().__init__()
        self.features = features
        self.relu = nn.ReLU()
        self.avgpool = MEAN_OF_ALL[dimensions](1)
        self.classifier = nn.Linear(channels, outputs)

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.avgpool(self.relu(self.features(image))).flatten(1))
        return logits


def build(model: DenseNet, plan: Plan) -> nn.Module:
    """``(B, in_channels, *patch)`` to logits ``(B, outputs)``."""
    dimensions, growth, channels = plan.dimensions, scaled(GROWTH, model.width), scaled(STEM, model.width)
    stages: OrderedDict[str, nn.Module] = OrderedDict(
        conv0=convolution(dimensions, plan.in_channels, channels, 7, stride=2),
        norm0=make_norm(model.norm, channels, dimensions),
        relu0=nn.ReLU(),
        pool0=MAX_POOL[dimensions](3, stride=2, padding=1),
    )
    blocks = BLOCKS[model.depth]
    for number, layers in enumerate(blocks, start=1):
        block = nn.Sequential()
        for place in range(1, layers + 1):
            block.add_module(
                f"denselayer{place}", Layer(dimensions, channels, growth, model.norm, model.dropout)
            )
            channels += growth
        stages[f"denseblock{number}"] = block
        if number < len(blocks):
            stages[f"transition{number}"] = _transition(dimensions, channels, model.norm)
            channels //= 2
    stages["norm5"] = make_norm(model.norm, channels, dimensions)
    network = Network(nn.Sequential(stages), channels, dimensions, plan.outputs)
    initialise(network)
    return network


def _transition(dimensions: int, channels: int, norm: Norm) -> nn.Module:
    """Half the channels at half the resolution."""
    return nn.Sequential(
        OrderedDict(
            norm=make_norm(norm, channels, dimensions),
            relu=nn.ReLU(),
            conv=convolution(dimensions, channels, channels // 2, 1),
            pool=MEAN_POOL[dimensions](2, stride=2),
        )
    )
