"""Decisions of one U-Net for each modality, averaged: fusion at the latest level, in 2D and 3D.

The result is the mean of the probabilities of those members whose modality is there, as logits; a member whose modality is
missing says nothing and learns nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fedmed_common.catalogue.base import Plan
from fedmed_common.catalogue.multimodal import LateFusion
from fedmed_common.models.parts.plain_unet import plain_unet
from fedmed_common.models.parts.present import present

_NEVER = -1e9


def build(model: LateFusion, plan: Plan) -> nn.Module:
    """``(B, in_channels, *patch)``, a channel for each modality, to logits ``(B, outputs, *patch)``."""
    return Members(model, plan)


class Members(nn.Module):
    """The logarithm of the mean of the members' probabilities, which softmax gives back as that mean."""

    def __init__(self, model: LateFusion, plan: Plan) -> None:
        super().__init__()
        self.members = nn.ModuleList(
            plain_unet(
                plan.dimensions, 1, plan.outputs, model.channels, norm=model.norm, dropout=model.dropout
            )
            for _ in range(plan.in_channels)
        )

    def forward(self, image: Tensor) -> Tensor:
        """Logits; where no modality is there, those of all members."""
        there = present(image)
        there = torch.where(there.sum(1, keepdim=True) > 0, there, torch.ones_like(there))
        each = torch.stack(
            [member(image[:, place : place + 1]).log_softmax(1) for place, member in enumerate(self.members)],
            1,
        )
        weight = torch.where(there > 0, 0.0, _NEVER).to(each.dtype)
        weighed = each + weight.reshape(*weight.shape, *[1] * (each.ndim - 2))
        count = there.sum(1).log().reshape(-1, *[1] * (each.ndim - 2))
        return weighed.logsumexp(1) - count
