"""Inception U-Net (Punn and Agarwal 2020): one inception block in place of two convolutions, in 2D and 3D.

A block joins 1x1, 3x3 and 5x5 convolutions and a pool, each with as many features as the level, by a 1x1 convolution, as in the
authors' code. Ours pools the maximum, where theirs adds a pool in the frequency domain; has the norm of ``model.norm`` after
every convolution, where theirs normalises the image alone (switchable norm); and no shortcut from the image to the deepest level.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from fedmed_common.catalogue.base import Norm, Plan
from fedmed_common.catalogue.unets import InceptionUNet
from fedmed_common.models.parts.convolutions import MAX_POOL, convolution, normed
from fedmed_common.models.parts.ushape import UShape, halving, he_normal, up_convolution


class Inception(nn.Module):
    """``(B, entering, *S)`` to ``(B, leaving, *S)``, seen at three scales and through a pool."""

    def __init__(self, dimensions: int, entering: int, leaving: int, norm: Norm, dropout: float) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            normed(dimensions, entering, leaving, kernel, norm) for kernel in (1, 3, 5)
        )
        self.branches.append(
            nn.Sequential(
                MAX_POOL[dimensions](3, stride=1, padding=1),
                normed(dimensions, entering, leaving, 1, norm),
            )
        )
        self.join = nn.Sequential(normed(dimensions, 4 * leaving, leaving, 1, norm), nn.Dropout(dropout))

    def forward(self, maps: Tensor) -> Tensor:
        joined: Tensor = self.join(torch.cat([branch(maps) for branch in self.branches], dim=1))
        return joined


def build(model: InceptionUNet, plan: Plan) -> nn.Module:
    """``(B, in_channels, *patch)`` to logits ``(B, outputs, *patch)``."""
    sizes, dimensions = model.channels, plan.dimensions

    def block(entering: int, leaving: int) -> nn.Module:
        return Inception(dimensions, entering, leaving, model.norm, model.dropout)

    upwards = list(pairwise(reversed(sizes)))
    network = UShape(
        [block(entering, leaving) for entering, leaving in pairwise((plan.in_channels, *sizes))],
        [block(2 * fine, fine) for _, fine in upwards],
        pool=halving(dimensions),
        up=[up_convolution(dimensions, coarse, fine) for coarse, fine in upwards],
        head=convolution(dimensions, sizes[0], plan.outputs, 1, bias=True),
    )
    he_normal(network)
    return network
