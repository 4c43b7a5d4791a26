"""Attention U-Net (Oktay et al. 2018, sections 2.1 and 2.2, figure 2), in 2D and 3D.

The gates are additive and on a grid: the coarser level says where to look in what a skip connection passes on (equations 1, 2).
As in the authors' code the finest level has no gate, upsampling has no weights, and a 1x1 convolution joins several ``gates``.
Ours has no deep supervision.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from fedmed_common.catalogue.base import Norm, Plan
from fedmed_common.catalogue.unets import AttentionUNet
from fedmed_common.models.parts.convolutions import CONVOLUTION, convolution, normed, resized
from fedmed_common.models.parts.norms import make_norm
from fedmed_common.models.parts.ushape import halving, he_normal, upsampling


class Gate(nn.Module):
    """``(B, channels, *S)`` weighed by ``sigmoid(psi(relu(theta(skip) + phi(signal))))``, signal ``(B, coarse, *S / 2)``."""

    def __init__(self, dimensions: int, channels: int, coarse: int, norm: Norm) -> None:
        super().__init__()
        self.theta = CONVOLUTION[dimensions](channels, channels, 2, stride=2, bias=False)
        self.phi = convolution(dimensions, coarse, channels, 1, bias=True)
        self.psi = convolution(dimensions, channels, 1, 1, bias=True)
        self.transform = nn.Sequential(
            convolution(dimensions, channels, channels, 1), make_norm(norm, channels, dimensions)
        )

    def weights(self, skip: Tensor, signal: Tensor) -> Tensor:
        """``(B, 1, *S)``, each from 0 to 1."""
        asked = torch.relu(self.theta(skip) + self.phi(signal))
        return resized(torch.sigmoid(self.psi(asked)), skip)

    def forward(self, skip: Tensor, signal: Tensor) -> Tensor:
        gated: Tensor = self.transform(skip * self.weights(skip, signal))
        return gated


class Gates(nn.Module):
    """Several gates on one skip connection, joined to as many channels as it has."""

    def __init__(self, dimensions: int, channels: int, coarse: int, norm: Norm, count: int) -> None:
        super().__init__()
        self.gates = nn.ModuleList(Gate(dimensions, channels, coarse, norm) for _ in range(count))
        self.join = normed(dimensions, count * channels, channels, 1, norm)

    def forward(self, skip: Tensor, signal: Tensor) -> Tensor:
        joined: Tensor = self.join(torch.cat([gate(skip, signal) for gate in self.gates], dim=1))
        return joined


class Network(nn.Module):
    """``left`` finest first, the others coarsest first; the finest skip connection is not gated."""

    def __init__(self, model: AttentionUNet, plan: Plan) -> None:
        super().__init__()
        sizes, dimensions = model.channels, plan.dimensions

        def double(entering: int, leaving: int) -> nn.Module:
            return nn.Sequential(
                normed(dimensions, entering, leaving, 3, model.norm),
                normed(dimensions, leaving, leaving, 3, model.norm),
            )

        upwards = list(pairwise(reversed(sizes)))
        self.left = nn.ModuleList(double(*pair) for pair in pairwise((plan.in_channels, *sizes)))
        self.pool = halving(dimensions)
        self.signal = normed(dimensions, sizes[-1], sizes[-1], 1, model.norm)
        self.gates = nn.ModuleList(
            Gates(dimensions, fine, coarse, model.norm, model.gates) for coarse, fine in upwards[:-1]
        )
        self.up = upsampling(dimensions)
        self.right = nn.ModuleList(double(coarse + fine, fine) for coarse, fine in upwards)
        self.head = convolution(dimensions, sizes[0], plan.outputs, 1, bias=True)
        he_normal(self)

    def forward(self, image: Tensor) -> Tensor:
        maps = image
        skips: list[Tensor] = []
        for level, stage in enumerate(self.left):
            maps = stage(self.pool(maps) if level else maps)
            skips.append(maps)
        skips.pop()
        signal = self.signal(maps)
        for level, stage in enumerate(self.right):
            skip = skips.pop()
            if level < len(self.gates):
                skip = self.gates[level](skip, signal)
            maps = stage(torch.cat([skip, self.up(maps)], dim=1))
            signal = maps
        logits: Tensor = self.head(maps)
        return logits

    def checkpoint_blocks(self) -> list[nn.Module]:
        """The stages: what is worth computing twice to save its memory."""
        return [*self.left, *self.right]


def build(model: AttentionUNet, plan: Plan) -> nn.Module:
    """``(B, in_channels, *patch)`` to logits ``(B, outputs, *patch)``."""
    return Network(model, plan)
