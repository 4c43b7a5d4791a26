"""Deep residual U-Net (Zhang et al. 2018, section II and table I): full pre-activation units (He et al. 2016), 2D and 3D.

A unit's first convolution strides where a level begins; upsampling has no weights (the paper does not say which: ours is linear
interpolation). Where a unit changes the number of features or the size, its identity is a 1x1 convolution, as in He et al. 2016;
the paper counts none for them.
"""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from fedmed_common.catalogue.base import Norm, Plan
from fedmed_common.catalogue.unets import ResidualUNet
from fedmed_common.models.parts.convolutions import convolution
from fedmed_common.models.parts.norms import make_norm
from fedmed_common.models.parts.ushape import UShape, he_normal, upsampling


class Unit(nn.Module):
    """Norm, ReLU, convolution, twice; ``first``: of the image itself, which is neither normalised nor cut at zero."""

    def __init__(
        self,
        dimensions: int,
        entering: int,
        leaving: int,
        norm: Norm,
        *,
        stride: int = 1,
        first: bool = False,
    ) -> None:
        super().__init__()
        before = [] if first else [make_norm(norm, entering, dimensions), nn.ReLU()]
        self.convolutions = nn.Sequential(
            *before,
            convolution(dimensions, entering, leaving, 3, stride=stride),
            make_norm(norm, leaving, dimensions),
            nn.ReLU(),
            convolution(dimensions, leaving, leaving, 3),
        )
        self.shortcut: nn.Module = nn.Identity()
        if entering != leaving or stride != 1:
            self.shortcut = convolution(dimensions, entering, leaving, 1, stride=stride)

    def forward(self, maps: Tensor) -> Tensor:
        result: Tensor = self.convolutions(maps) + self.shortcut(maps)
        return result


def build(model: ResidualUNet, plan: Plan) -> nn.Module:
    """``(B, in_channels, *patch)`` to logits ``(B, outputs, *patch)``."""
    sizes, dimensions = model.channels, plan.dimensions
    upwards = list(pairwise(reversed(sizes)))
    network = UShape(
        [
            Unit(dimensions, plan.in_channels, sizes[0], model.norm, first=True),
            *(Unit(dimensions, fine, coarse, model.norm, stride=2) for fine, coarse in pairwise(sizes)),
        ],
        [Unit(dimensions, coarse + fine, fine, model.norm) for coarse, fine in upwards],
        pool=nn.Identity(),
        up=[upsampling(dimensions) for _ in upwards],
        head=convolution(dimensions, sizes[0], plan.outputs, 1, bias=True),
    )
    he_normal(network)
    return network
