"""An ensemble of U-Nets (Kamnitsas et al. 2018, section 2; Lakshminarayanan et al. 2017), in 2D and 3D.

The members differ by their initial weights, and by their sizes where these are given; each has a loss of its own, as if it were
trained alone. The result is the mean of their probabilities, as logits. All see the same patches in the same order, unlike in the
papers.
"""

from __future__ import annotations

from math import log

import torch
from torch import Tensor, nn

from fedmed_common.catalogue.base import Plan
from fedmed_common.catalogue.composed import Ensemble
from fedmed_common.models.parts.plain_unet import plain_unet


def build(model: Ensemble, plan: Plan) -> nn.Module:
    """``(B, in_channels, *patch)`` to logits ``(B, outputs, *patch)``; while training also each member's."""
    return Members(model, plan)


class Members(nn.Module):
    """The logarithm of the mean of the members' probabilities, which softmax gives back as that mean."""

    def __init__(self, model: Ensemble, plan: Plan) -> None:
        super().__init__()
        self.members = nn.ModuleList(
            plain_unet(
                plan.dimensions,
                plan.in_channels,
                plan.outputs,
                channels,
                norm=model.norm,
                dropout=model.dropout,
            )
            for channels in model.each()
        )
        self.output_weights = (0.0, *[1 / len(self.members)] * len(self.members))

    def forward(self, image: Tensor) -> Tensor | tuple[Tensor, ...]:
        """The ensemble's logits; while training a tuple of these, which have no weight, and each member's."""
        each = [member(image) for member in self.members]
        together = torch.stack([logits.log_softmax(1) for logits in each]).logsumexp(0) - log(len(each))
        return (together, *each) if self.training else together
