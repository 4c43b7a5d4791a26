"""A plain U-Net (Ronneberger et al. 2015, figure 1) for networks that are made of several, in 2D and 3D.

Two convolutions of kernel 3 a level, max pooling down, transposed convolutions up. Unlike the paper's: padded convolutions, and a
norm after each.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from fedmed_common.catalogue.base import Norm
from fedmed_common.models.parts.convolutions import convolution, normed
from fedmed_common.models.parts.ushape import UShape, halving, up_convolution


def double(dimensions: int, channels_in: int, channels_out: int, norm: Norm) -> nn.Sequential:
    """Two convolutions of kernel 3, each with norm and ReLU."""
    return nn.Sequential(
        normed(dimensions, channels_in, channels_out, 3, norm),
        normed(dimensions, channels_out, channels_out, 3, norm),
    )


def plain_unet(
    dimensions: int,
    channels_in: int,
    outputs: int,
    channels: Sequence[int],
    *,
    norm: Norm,
    dropout: float = 0.0,
) -> UShape:
    """``(B, channels_in, *S)`` to logits ``(B, outputs, *S)``; each of S a multiple of ``2 ** (len(channels) - 1)``.

    ``dropout``: of the bottom's features.
    """
    left: list[nn.Module] = [
        double(dimensions, before, after, norm) for before, after in pairwise((channels_in, *channels))
    ]
    left[-1] = nn.Sequential(*left[-1].children(), nn.Dropout(dropout))
    coarsest_first = list(pairwise(reversed(channels)))
    return UShape(
        left,
        [double(dimensions, 2 * here, here, norm) for _, here in coarsest_first],
        pool=halving(dimensions),
        up=[up_convolution(dimensions, below, here) for below, here in coarsest_first],
        head=convolution(dimensions, channels[0], outputs, 1, bias=True),
    )
