"""3D U-Net (Çiçek et al. 2016, section 2 and figure 2).

Each level doubles its features before the pooling, not after it, and an up-convolution keeps them, so that no layer is a
bottleneck. Ours pads each convolution, so that logits are as large as the image; the paper's norm is batch norm, ours is what
``model.norm`` says and stands in place of the convolution's bias. The paper does not say how weights are drawn: ours as He et al.
2015.
"""

from __future__ import annotations

from itertools import pairwise

from torch import nn

from fedmed_common.catalogue.base import Plan
from fedmed_common.catalogue.unets import UNet3D
from fedmed_common.models.parts.convolutions import convolution, normed
from fedmed_common.models.parts.ushape import UShape, halving, he_normal, up_convolution


def build(model: UNet3D, plan: Plan) -> nn.Module:
    """``(B, in_channels, *patch)`` to logits ``(B, outputs, *patch)``."""
    sizes = model.channels

    def pair(entering: int, between: int, leaving: int) -> nn.Sequential:
        return nn.Sequential(
            normed(plan.dimensions, entering, between, 3, model.norm),
            normed(plan.dimensions, between, leaving, 3, model.norm),
        )

    upwards = list(pairwise(reversed(sizes)))
    network = UShape(
        [
            pair(entering, max(1, leaving // 2), leaving)
            for entering, leaving in pairwise((plan.in_channels, *sizes))
        ],
        [pair(coarse + fine, fine, fine) for coarse, fine in upwards],
        pool=halving(plan.dimensions),
        up=[up_convolution(plan.dimensions, coarse, coarse, bias=False) for coarse, _ in upwards],
        head=convolution(plan.dimensions, sizes[0], plan.outputs, 1, bias=True),
    )
    he_normal(network)
    return network
