"""GoogLeNet (Szegedy et al. 2015, table 1 and section 5), 2D.

Each convolution is followed by a norm in place of the paper's biases and local response normalisation, as all later
implementations have it. The auxiliary classifiers stand where the paper has them, after modules 4a and 4d.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fedmed_common.catalogue.base import Norm, Plan
from fedmed_common.catalogue.classification import GoogLeNet
from fedmed_common.models.parts.classifier import GridMean
from fedmed_common.models.parts.convolutions import normed, scaled
from fedmed_common.models.parts.norms import make_norm

MODULES: dict[str, tuple[int, int, int, int, int, int]] = {
    "3a": (64, 96, 128, 16, 32, 32),
    "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64),
    "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128),
    "5b": (384, 192, 384, 48, 128, 128),
}
"""Channels: of the 1x1 branch, of the 3x3 branch before and after, of the 5x5 branch before and after, of the pooled branch."""
AUXILIARY_WEIGHT = 0.3
AUXILIARY_AFTER = ("4a", "4d")
AUXILIARY_CHANNELS, AUXILIARY_GRID, AUXILIARY_HIDDEN, AUXILIARY_DROPOUT = 128, 4, 1024, 0.7


class Inception(nn.Module):
    """Four branches side by side."""

    def __init__(self, entering: int, channels: tuple[int, ...], norm: Norm) -> None:
        super().__init__()
        one, three_in, three, five_in, five, pooled = channels
        self.branch1 = normed(2, entering, one, 1, norm)
        self.branch2 = nn.Sequential(
            normed(2, entering, three_in, 1, norm), normed(2, three_in, three, 3, norm)
        )
        self.branch3 = nn.Sequential(normed(2, entering, five_in, 1, norm), normed(2, five_in, five, 5, norm))
        self.branch4 = nn.Sequential(nn.MaxPool2d(3, 1, padding=1), normed(2, entering, pooled, 1, norm))
        self.channels = one + three + five + pooled

    def forward(self, maps: Tensor) -> Tensor:
        branches = (self.branch1, self.branch2, self.branch3, self.branch4)
        return torch.cat([branch(maps) for branch in branches], dim=1)


class Auxiliary(nn.Module):
    """A classifier on maps within the network."""

    def __init__(self, entering: int, outputs: int, norm: Norm, width: float) -> None:
        super().__init__()
        channels, hidden = scaled(AUXILIARY_CHANNELS, width), scaled(AUXILIARY_HIDDEN, width)
        self.pool = GridMean(AUXILIARY_GRID)
        self.conv = normed(2, entering, channels, 1, norm)
        self.fc1 = nn.Linear(channels * AUXILIARY_GRID**2, hidden)
        self.relu = nn.ReLU()
        self.dropout = nn.Dropout(AUXILIARY_DROPOUT)
        self.fc2 = nn.Linear(hidden, outputs)

    def forward(self, maps: Tensor) -> Tensor:
        pooled = self.conv(self.pool(maps)).flatten(1)
        logits: Tensor = self.fc2(self.dropout(self.relu(self.fc1(pooled))))
        return logits


class Network(nn.Module):
    """Stem, nine modules, and in training the two auxiliary classifiers' logits behind its own."""

    def __init__(self, model: GoogLeNet, plan: Plan) -> None:
        super().__init__()
        first, second = scaled(64, model.width), scaled(192, model.width)
        self.conv1 = nn.Sequential(
            nn.Conv2d(plan.in_channels, first, 7, stride=2, padding=3, bias=False),
            make_norm(model.norm, first, 2),
            nn.ReLU(),
        )
        self.conv2 = normed(2, first, first, 1, model.norm)
        self.conv3 = normed(2, first, second, 3, model.norm)
        self.pool = nn.MaxPool2d(3, 2, padding=1)
        entering = second
        for name, channels in MODULES.items():
            stage = Inception(entering, tuple(scaled(number, model.width) for number in channels), model.norm)
            self.add_module(f"inception{name}", stage)
            entering = stage.channels
            if model.auxiliary and name in AUXILIARY_AFTER:
                number = 1 + AUXILIARY_AFTER.index(name)
                self.add_module(f"aux{number}", Auxiliary(entering, plan.outputs, model.norm, model.width))
        self.dropout = nn.Dropout(model.dropout)
        self.fc = nn.Linear(entering, plan.outputs)
        self.auxiliary = model.auxiliary
        self.output_weights = (1.0, AUXILIARY_WEIGHT, AUXILIARY_WEIGHT) if model.auxiliary else (1.0,)

    def forward(self, image: Tensor) -> Tensor | tuple[Tensor, ...]:
        maps = self.conv3(self.conv2(self.pool(self.conv1(image))))
        within: list[Tensor] = []
        level = "2"
        for name in MODULES:
            if name[0] != level:
                maps, level = self.pool(maps), name[0]
            maps = self.get_submodule(f"inception{name}")(maps)
            if self.training and self.auxiliary and name in AUXILIARY_AFTER:
                within.append(self.get_submodule(f"aux{len(within) + 1}")(maps))
        logits: Tensor = self.fc(self.dropout(maps.mean((2, 3))))
        return (logits, *within) if within else logits


def build(model: GoogLeNet, plan: Plan) -> nn.Module:
    """``(B, in_channels, *patch)`` to logits ``(B, outputs)``; in training three of them, with ``output_weights``."""
    return Network(model, plan)
