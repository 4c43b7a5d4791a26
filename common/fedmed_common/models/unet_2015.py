"""U-Net as published (Ronneberger et al. 2015, section 2 and figure 1), in 2D.

Ours pads each convolution, so that logits are as large as the image and nothing is cropped, and has a norm after each 3x3
convolution, in place of its bias; the paper has neither. Weights are drawn as in section 3.
"""

from __future__ import annotations

from itertools import pairwise

from torch import nn

from fedmed_common.catalogue.base import Plan
from fedmed_common.catalogue.unets import UNet2015
from fedmed_common.models.parts.convolutions import convolution, normed
from fedmed_common.models.parts.ushape import UShape, halving, he_normal, up_convolution


def build(model: UNet2015, plan: Plan) -> nn.Module:
    """``(B, in_channels, *patch)`` to logits ``(B, outputs, *patch)``."""
    sizes = model.channels

    def double(entering: int, leaving: int) -> nn.Sequential:
        return nn.Sequential(
            normed(plan.dimensions, entering, leaving, 3, model.norm),
            normed(plan.dimensions, leaving, leaving, 3, model.norm),
        )

    left = [double(entering, leaving) for entering, leaving in pairwise((plan.in_channels, *sizes))]
    left[-1].append(nn.Dropout(model.dropout))
    upwards = list(pairwise(reversed(sizes)))
    network = UShape(
        left,
        [double(2 * fine, fine) for _, fine in upwards],
        pool=halving(plan.dimensions),
        up=[up_convolution(plan.dimensions, coarse, fine) for coarse, fine in upwards],
        head=convolution(plan.dimensions, sizes[0], plan.outputs, 1, bias=True),
    )
    he_normal(network)
    return network
