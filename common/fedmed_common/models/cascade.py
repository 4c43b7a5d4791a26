"""A cascade of two U-Nets (Roth et al. 2018; nnU-Net's 3D cascade, Isensee et al. 2021), in 2D and 3D, trained together.

The coarse one sees the image made coarse by averaging; the fine one the image, and the coarse one's probabilities interpolated as
further channels. As in the papers, where one is trained after the other, the fine one's loss does not reach the coarse one.
Unlike there, the fine one sees probabilities, not decisions, and the whole patch, not a region.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fedmed_common.catalogue.base import Plan
from fedmed_common.catalogue.composed import Cascade
from fedmed_common.models.parts.convolutions import resized
from fedmed_common.models.parts.plain_unet import plain_unet

_MEAN: dict[int, type[nn.AvgPool2d | nn.AvgPool3d]] = {2: nn.AvgPool2d, 3: nn.AvgPool3d}


def build(model: Cascade, plan: Plan) -> nn.Module:
    """``(B, in_channels, *patch)`` to logits ``(B, outputs, *patch)``; while training also the coarse ones."""
    return CoarseToFine(model, plan)


class CoarseToFine(nn.Module):
    """``coarse``, then ``fine``."""

    def __init__(self, model: Cascade, plan: Plan) -> None:
        super().__init__()
        dimensions, outputs = plan.dimensions, plan.outputs
        self.shrink = _MEAN[dimensions](model.factor)
        self.coarse = plain_unet(
            dimensions,
            plan.in_channels,
            outputs,
            model.coarse_channels,
            norm=model.norm,
            dropout=model.dropout,
        )
        self.fine = plain_unet(
            dimensions,
            plan.in_channels + outputs,
            outputs,
            model.channels,
            norm=model.norm,
            dropout=model.dropout,
        )
        self.output_weights = (0.5, 0.5)

    def forward(self, image: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """The fine logits; while training a tuple of the fine and the coarse ones."""
        coarse: Tensor = self.coarse(self.shrink(image))
        guess = resized(coarse.detach().softmax(1), image)
        fine: Tensor = self.fine(torch.cat([image, guess], dim=1))
        return (fine, coarse) if self.training else fine
