"""Atrous spatial pyramid pooling as in DeepLab v3 (Chen et al. 2017, section 3.3), and what starts its logits."""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd

import torch
from torch import Tensor, nn

from fedmed_common.catalogue.base import Norm
from fedmed_common.models.parts.convolutions import convolution, initialise, normed
from fedmed_common.models.parts.norms import GROUPS, make_norm

HEAD_DEVIATION = 0.01
"""Of a head's first weights, as in the authors' code."""


class Pyramid(nn.Module):
    """``(B, entering, *S)`` to ``(B, leaving, *S)``: 1x1, 3x3 at each rate and the mean over the image, joined by 1x1.

    The mean is one voxel, of which an instance norm would leave nothing, and a batch norm nothing of a batch of one: it has a
    group norm whatever ``norm`` is. It is the same at every place, so that nothing is interpolated.
    """

    def __init__(
        self,
        dimensions: int,
        norm: Norm,
        entering: int,
        leaving: int,
        rates: Sequence[int],
        *,
        separable: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.points = normed(dimensions, entering, leaving, 1, norm)
        kind = separable_normed if separable else normed
        self.atrous = nn.ModuleList(
            kind(dimensions, entering, leaving, 3, norm, dilation=rate) for rate in rates
        )
        self.image = nn.Sequential(
            convolution(dimensions, entering, leaving, 1),
            nn.GroupNorm(gcd(GROUPS, max(1, leaving // 2)), leaving),
            nn.ReLU(),
        )
        self.join = normed(dimensions, (2 + len(rates)) * leaving, leaving, 1, norm)
        self.dropout = nn.Dropout(dropout)
        initialise(self)

    def forward(self, maps: Tensor) -> Tensor:
        whole = maps.mean(dim=tuple(range(2, maps.ndim)), keepdim=True)
        mean = self.image(whole).expand(-1, -1, *maps.shape[2:])
        seen = [self.points(maps), *(branch(maps) for branch in self.atrous), mean]
        result: Tensor = self.dropout(self.join(torch.cat(seen, dim=1)))
        return result


def separable_normed(
    dimensions: int,
    channels_in: int,
    channels_out: int,
    kernel: int,
    norm: Norm,
    *,
    dilation: int = 1,
) -> nn.Sequential:
    """Depthwise and pointwise convolution, each with norm and ReLU."""
    return nn.Sequential(
        convolution(dimensions, channels_in, channels_in, kernel, dilation=dilation, groups=channels_in),
        make_norm(norm, channels_in, dimensions),
        nn.ReLU(),
        *normed(dimensions, channels_in, channels_out, 1, norm),
    )


def small_head(
    dimensions: int, channels_in: int, outputs: int, kernel: int = 1, *, dilation: int = 1
) -> nn.Module:
    """A convolution to logits, whose first weights are small."""
    head = convolution(dimensions, channels_in, outputs, kernel, dilation=dilation, bias=True)
    nn.init.normal_(head.get_parameter("weight"), std=HEAD_DEVIATION)
    nn.init.zeros_(head.get_parameter("bias"))
    return head
