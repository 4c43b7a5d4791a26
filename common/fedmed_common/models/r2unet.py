"""R2U-Net (Alom et al. 2018, section III): recurrent convolutions in residual units, in 2D and 3D.

A recurrent convolution adds what it made to its input and convolves again, ``steps`` times, with the same weights. Equation 1 of
the paper has one kernel for the input and one for the recurrence; ours is one for both, as in the implementation most in use.
The steps share their norm too.
"""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from fedmed_common.catalogue.base import Norm, Plan
from fedmed_common.catalogue.unets import R2UNet
from fedmed_common.models.parts.convolutions import convolution, normed
from fedmed_common.models.parts.ushape import UShape, halving, he_normal, upsampling


class Recurrent(nn.Module):
    """x(0) = f(u); x(t) = f(u + x(t - 1)), with f convolution, norm and ReLU; gives x(``steps``)."""

    def __init__(self, dimensions: int, channels: int, norm: Norm, steps: int) -> None:
        super().__init__()
        self.steps = steps
        self.convolution = normed(dimensions, channels, channels, 3, norm)

    def forward(self, maps: Tensor) -> Tensor:
        state: Tensor = self.convolution(maps)
        for _ in range(self.steps):
            state = self.convolution(maps + state)
        return state


class Unit(nn.Module):
    """A 1x1 convolution to as many features as leave, and two recurrent ones with a shortcut around them."""

    def __init__(self, dimensions: int, entering: int, leaving: int, norm: Norm, steps: int) -> None:
        super().__init__()
        self.enter = convolution(dimensions, entering, leaving, 1, bias=True)
        self.recurrent = nn.Sequential(
            Recurrent(dimensions, leaving, norm, steps), Recurrent(dimensions, leaving, norm, steps)
        )

    def forward(self, maps: Tensor) -> Tensor:
        entered = self.enter(maps)
        result: Tensor = entered + self.recurrent(entered)
        return result


def build(model: R2UNet, plan: Plan) -> nn.Module:
    """``(B, in_channels, *patch)`` to logits ``(B, outputs, *patch)``."""
    sizes, dimensions = model.channels, plan.dimensions

    def unit(entering: int, leaving: int) -> nn.Module:
        return Unit(dimensions, entering, leaving, model.norm, model.steps)

    upwards = list(pairwise(reversed(sizes)))
    network = UShape(
        [unit(entering, leaving) for entering, leaving in pairwise((plan.in_channels, *sizes))],
        [unit(2 * fine, fine) for _, fine in upwards],
        pool=halving(dimensions),
        up=[
            nn.Sequential(upsampling(dimensions), normed(dimensions, coarse, fine, 3, model.norm))
            for coarse, fine in upwards
        ],
        head=convolution(dimensions, sizes[0], plan.outputs, 1, bias=True),
    )
    he_normal(network)
    return network
