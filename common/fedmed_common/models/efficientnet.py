"""EfficientNet (Tan and Le 2019, table 1 and section 3.3) and EfficientNetV2 (Tan and Le 2021, table 4), in 2D and 3D.

Sizes are those of torchvision's and of the official code. Padding is symmetric, as torchvision has it, not TensorFlow's "same".
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from fedmed_common.catalogue.base import Norm, Plan
from fedmed_common.catalogue.classification import EfficientNet
from fedmed_common.models.parts.convolutions import MEAN_OF_ALL, convolution, initialise, scaled
from fedmed_common.models.parts.drop_path import DropPath
from fedmed_common.models.parts.norms import make_norm


@dataclass(frozen=True, slots=True)
class Stage:
    """``layers`` blocks of one kind; the first of them strides."""

    expansion: int
    channels: int
    layers: int
    stride: int
    kernel: int = 3
    fused: bool = False


BASE = (
    Stage(1, 16, 1, 1),
    Stage(6, 24, 2, 2),
    Stage(6, 40, 2, 2, 5),
    Stage(6, 80, 3, 2),
    Stage(6, 112, 3, 1, 5),
    Stage(6, 192, 4, 2, 5),
    Stage(6, 320, 1, 1),
)
"""B0 after its stem of 32 channels."""

SCALES = {
    "b0": (1.0, 1.0), "b1": (1.0, 1.1), "b2": (1.1, 1.2), "b3": (1.2, 1.4),
    "b4": (1.4, 1.8), "b5": (1.6, 2.2), "b6": (1.8, 2.6), "b7": (2.0, 3.1),
}  # fmt: skip
"""How much wider and deeper than B0."""

SECOND: dict[str, tuple[int, tuple[Stage, ...]]] = {
    "v2-s": (24, (
        Stage(1, 24, 2, 1, fused=True), Stage(4, 48, 4, 2, fused=True), Stage(4, 64, 4, 2, fused=True),
        Stage(4, 128, 6, 2), Stage(6, 160, 9, 1), Stage(6, 256, 15, 2),
    )),
    "v2-m": (24, (
        Stage(1, 24, 3, 1, fused=True), Stage(4, 48, 5, 2, fused=True), Stage(4, 80, 5, 2, fused=True),
        Stage(4, 160, 7, 2), Stage(6, 176, 14, 1), Stage(6, 304, 18, 2), Stage(6, 512, 5, 1),
    )),
    "v2-l": (32, (
        Stage(1, 32, 4, 1, fused=True), Stage(4, 64, 7, 2, fused=True), Stage(4, 96, 7, 2, fused=True),
        Stage(4, 192, 10, 2), Stage(6, 224, 19, 1), Stage(6, 384, 25, 2), Stage(6, 640, 7, 1),
    )),
}  # fmt: skip
"""Channels of the stem, and the stages, of EfficientNetV2."""
STEM, SECOND_HEAD = 32, 1280
SQUEEZE = 4


class SqueezeExcitation(nn.Module):
    """Each channel times a factor between 0 and 1 that all channels' means decide (Hu et al. 2018)."""

    def __init__(self, dimensions: int, channels: int, squeezed: int) -> None:
        super().__init__()
        self.mean = MEAN_OF_ALL[dimensions](1)
        self.down = convolution(dimensions, channels, squeezed, 1, bias=True)
        self.up = convolution(dimensions, squeezed, channels, 1, bias=True)
        self.act, self.gate = nn.SiLU(), nn.Sigmoid()

    def forward(self, maps: Tensor) -> Tensor:
        result: Tensor = maps * self.gate(self.up(self.act(self.down(self.mean(maps)))))
        return result


class Block(nn.Module):
    """An inverted bottleneck: expand, convolve each channel alone, squeeze and excite, project; fused: one whole convolution."""

    def __init__(
        self, dimensions: int, entering: int, stage: Stage, stride: int, norm: Norm, drop: float
    ) -> None:
        super().__init__()
        inner, leaving = entering * stage.expansion, stage.channels
        layers: list[nn.Module] = []
        if stage.fused:
            first = leaving if stage.expansion == 1 else inner
            layers += _unit(dimensions, entering, first, stage.kernel, norm, stride=stride)
        else:
            if stage.expansion > 1:
                layers += _unit(dimensions, entering, inner, 1, norm)
            layers += _unit(dimensions, inner, inner, stage.kernel, norm, stride=stride, groups=inner)
            layers.append(SqueezeExcitation(dimensions, inner, max(1, entering // SQUEEZE)))
        if not (stage.fused and stage.expansion == 1):
            layers += _unit(dimensions, inner, leaving, 1, norm)[:-1]
        self.layers = nn.Sequential(*layers)
        self.adds = stride == 1 and entering == leaving
        self.drop_path = DropPath(drop)

    def forward(self, maps: Tensor) -> Tensor:
        result: Tensor = self.layers(maps)
        return maps + self.drop_path(result) if self.adds else result


class Network(nn.Module):
    """Stem, blocks, head."""

    def __init__(self, model: EfficientNet, plan: Plan) -> None:
        super().__init__()
        dimensions, norm = plan.dimensions, model.norm
        entering, stages, last = _sizes(model)
        self.stem = nn.Sequential(*_unit(dimensions, plan.in_channels, entering, 3, norm, stride=2))
        total, place = sum(stage.layers for stage in stages), 0
        blocks: list[nn.Module] = []
        for stage in stages:
            for layer in range(stage.layers):
                drop = model.drop_path * place / total
                blocks.append(Block(dimensions, entering, stage, 1 if layer else stage.stride, norm, drop))
                entering, place = stage.channels, place + 1
        self.blocks = nn.Sequential(*blocks)
        self.top = nn.Sequential(*_unit(dimensions, entering, last, 1, norm))
        self.mean = MEAN_OF_ALL[dimensions](1)
        self.dropout = nn.Dropout(model.dropout)
        self.classifier = nn.Linear(last, plan.outputs)

    def forward(self, image: Tensor) -> Tensor:
        maps = self.top(self.blocks(self.stem(image)))
        logits: Tensor = self.classifier(self.dropout(self.mean(maps).flatten(1)))
        return logits


def build(model: EfficientNet, plan: Plan) -> nn.Module:
    """``(B, in_channels, *patch)`` to logits ``(B, outputs)``."""
    network = Network(model, plan)
    initialise(network)
    return network


def _sizes(model: EfficientNet) -> tuple[int, list[Stage], int]:
    """Channels of the stem, the stages, channels of the head."""
    if model.variant in SECOND:
        stem, known = SECOND[model.variant]
        stages = list(_scaled(known, model.width, 1.0))
        return scaled(stem, model.width), stages, scaled(SECOND_HEAD, model.width)
    wide, deep = SCALES[model.variant]
    stages = list(_scaled(BASE, wide * model.width, deep))
    return _round(STEM * wide * model.width), stages, 4 * stages[-1].channels


def _scaled(stages: tuple[Stage, ...], wide: float, deep: float) -> Iterator[Stage]:
    for stage in stages:
        channels, layers = _round(stage.channels * wide), math.ceil(stage.layers * deep)
        yield Stage(stage.expansion, channels, layers, stage.stride, stage.kernel, stage.fused)


def _round(channels: float) -> int:
    """To the nearest multiple of eight, but never by more than a tenth down: the official code's rule."""
    nearest = max(8, int(channels + 4) // 8 * 8)
    return nearest + 8 if nearest < 0.9 * channels else nearest


def _unit(
    dimensions: int, entering: int, leaving: int, kernel: int, norm: Norm, *, stride: int = 1, groups: int = 1
) -> list[nn.Module]:
    return [
        convolution(dimensions, entering, leaving, kernel, stride=stride, groups=groups),
        make_norm(norm, leaving, dimensions),
        nn.SiLU(),
    ]
