"""Inception v3 (Szegedy et al. 2016, table 1, figures 5 to 7 and 10), 2D; sizes as torchvision has them.

The auxiliary classifier pools to 5x5 places whatever the image's size, which is what 299 pixels give; the norm of the one place
that is left is a group norm whatever ``norm`` is.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fedmed_common.catalogue.base import Norm, Plan
from fedmed_common.catalogue.classification import InceptionV3
from fedmed_common.models.parts.classifier import GridMean
from fedmed_common.models.parts.convolutions import scaled
from fedmed_common.models.parts.norms import make_norm

AUXILIARY_WEIGHT = 0.4
AUXILIARY_GRID = 5
Kernel = int | tuple[int, int]


class Unit(nn.Module):
    """Convolution, norm, ReLU; padded so that the size stays, or not at all."""

    def __init__(
        self, entering: int, leaving: int, kernel: Kernel, norm: Norm, *, stride: int = 1, padded: bool = True
    ) -> None:
        super().__init__()
        sizes = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (sizes[0] // 2, sizes[1] // 2) if padded else 0
        self.conv = nn.Conv2d(entering, leaving, sizes, stride=stride, padding=padding, bias=False)
        self.bn = make_norm(norm, leaving, 2)
        self.relu = nn.ReLU()
        nn.init.trunc_normal_(self.conv.weight, std=0.1, a=-0.2, b=0.2)

    def forward(self, maps: Tensor) -> Tensor:
        result: Tensor = self.relu(self.bn(self.conv(maps)))
        return result


class Mixed(nn.Module):
    """Branches side by side; each is a chain of layers, the last of which may be several side by side again."""

    def __init__(self, branches: Sequence[nn.Module]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, maps: Tensor) -> Tensor:
        return torch.cat([branch(maps) for branch in self.branches], dim=1)


class _Builder:
    """Makes modules with scaled channels and one kind of norm."""

    def __init__(self, norm: Norm, width: float) -> None:
        self.norm, self.width = norm, width

    def size(self, channels: int) -> int:
        return scaled(channels, self.width)

    def chain(
        self, entering: int, *layers: tuple[int, Kernel], stride: int = 1, before: Sequence[nn.Module] = ()
    ) -> nn.Sequential:
        """Units one after the other, of (channels, kernel); the last one strides, and is then not padded."""
        units: list[nn.Module] = list(before)
        for place, (channels, kernel) in enumerate(layers):
            last = place == len(layers) - 1
            strides = stride if last else 1
            leaving = self.size(channels)
            units.append(Unit(entering, leaving, kernel, self.norm, stride=strides, padded=strides == 1))
            entering = leaving
        return nn.Sequential(*units)

    def fork(self, entering: int, *layers: tuple[int, Kernel]) -> nn.Sequential:
        """A chain whose end is 1x3 and 3x1 side by side."""
        start = self.chain(entering, *layers[:-1])
        channels, inside = layers[-1][0], self.size(layers[-2][0])
        ends = Mixed([self.chain(inside, (channels, (1, 3))), self.chain(inside, (channels, (3, 1)))])
        return nn.Sequential(*start, ends)

    def a(self, entering: int, pooled: int) -> Mixed:
        """Figure 5."""
        return Mixed(
            [
                self.chain(entering, (64, 1)),
                self.chain(entering, (48, 1), (64, 5)),
                self.chain(entering, (64, 1), (96, 3), (96, 3)),
                self.chain(entering, (pooled, 1), before=[_mean()]),
            ]
        )

    def b(self, entering: int) -> Mixed:
        """Figure 10: half the resolution."""
        return Mixed(
            [
                self.chain(entering, (384, 3), stride=2),
                self.chain(entering, (64, 1), (96, 3), (96, 3), stride=2),
                nn.MaxPool2d(3, 2),
            ]
        )

    def c(self, entering: int, inner: int) -> Mixed:
        """Figure 6, with n = 7."""
        return Mixed(
            [
                self.chain(entering, (192, 1)),
                self.chain(entering, (inner, 1), (inner, (1, 7)), (192, (7, 1))),
                self.chain(
                    entering, (inner, 1), (inner, (7, 1)), (inner, (1, 7)), (inner, (7, 1)), (192, (1, 7))
                ),
                self.chain(entering, (192, 1), before=[_mean()]),
            ]
        )

    def d(self, entering: int) -> Mixed:
        """Half the resolution again."""
        return Mixed(
            [
                self.chain(entering, (192, 1), (320, 3), stride=2),
                self.chain(entering, (192, 1), (192, (1, 7)), (192, (7, 1)), (192, 3), stride=2),
                nn.MaxPool2d(3, 2),
            ]
        )

    def e(self, entering: int) -> Mixed:
        """Figure 7."""
        return Mixed(
            [
                self.chain(entering, (320, 1)),
                self.fork(entering, (384, 1), (384, 3)),
                self.fork(entering, (448, 1), (384, 3), (384, 3)),
                self.chain(entering, (192, 1), before=[_mean()]),
            ]
        )


class Auxiliary(nn.Module):
    """The classifier on the last 17x17 maps."""

    def __init__(self, entering: int, outputs: int, norm: Norm, width: float) -> None:
        super().__init__()
        inner, last = scaled(128, width), scaled(768, width)
        self.pool = GridMean(AUXILIARY_GRID)
        self.conv0 = Unit(entering, inner, 1, norm)
        self.conv1 = Unit(inner, last, AUXILIARY_GRID, "group", padded=False)
        self.fc = nn.Linear(last, outputs)

    def forward(self, maps: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.conv1(self.conv0(self.pool(maps))).flatten(1))
        return logits


class Network(nn.Module):
    """Stem, eleven modules, and in training the auxiliary classifier's logits behind its own."""

    def __init__(self, model: InceptionV3, plan: Plan) -> None:
        super().__init__()
        make = _Builder(model.norm, model.width)
        size, norm = make.size, model.norm
        self.stem = nn.Sequential(
            Unit(plan.in_channels, size(32), 3, norm, stride=2, padded=False),
            Unit(size(32), size(32), 3, norm, padded=False),
            Unit(size(32), size(64), 3, norm),
            nn.MaxPool2d(3, 2),
            Unit(size(64), size(80), 1, norm, padded=False),
            Unit(size(80), size(192), 3, norm, padded=False),
            nn.MaxPool2d(3, 2),
        )
        first = size(64) + size(64) + size(96)
        middle = size(384) + size(96) + first + size(64)
        fourfold = 4 * size(192)
        wide = size(320) + 4 * size(384) + size(192)
        self.fine = nn.Sequential(
            make.a(size(192), 32),
            make.a(first + size(32), 64),
            make.a(first + size(64), 64),
            make.b(first + size(64)),
        )
        self.middle = nn.Sequential(
            make.c(middle, 128), make.c(fourfold, 160), make.c(fourfold, 160), make.c(fourfold, 192)
        )
        self.AuxLogits = Auxiliary(fourfold, plan.outputs, norm, model.width) if model.auxiliary else None
        coarse = size(320) + size(192) + fourfold
        self.coarse = nn.Sequential(make.d(fourfold), make.e(coarse), make.e(wide))
        self.dropout = nn.Dropout(model.dropout)
        self.fc = nn.Linear(wide, plan.outputs)
        self.output_weights = (1.0, AUXILIARY_WEIGHT) if model.auxiliary else (1.0,)

    def forward(self, image: Tensor) -> Tensor | tuple[Tensor, ...]:
        maps = self.middle(self.fine(self.stem(image)))
        logits: Tensor = self.fc(self.dropout(self.coarse(maps).mean((2, 3))))
        if self.training and self.AuxLogits is not None:
            return logits, self.AuxLogits(maps)
        return logits


def build(model: InceptionV3, plan: Plan) -> nn.Module:
    """``(B, in_channels, *patch)`` to logits ``(B, outputs)``; in training two of them, with ``output_weights``."""
    return Network(model, plan)


def _mean() -> nn.Module:
    return nn.AvgPool2d(3, stride=1, padding=1)
