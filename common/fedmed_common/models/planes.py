"""2.5D segmentation: three 2D U-Nets over a volume's axial, coronal and sagittal slices (Roy et al. 2019, section 2.4).

Each sees a slice and its neighbours as channels; beyond the volume's end the last slice stands again. The views are fused by the
mean of their log-probabilities (the paper's is a weighted mean of probabilities), or by a learned convolution of kernel 1, which
starts as that mean. Unlike in the paper all three learn together, from their own loss and from the fused one, and sagittal slices
have the weight of the others.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fedmed_common.catalogue.base import Plan
from fedmed_common.catalogue.composed import Planes
from fedmed_common.models.parts.plain_unet import plain_unet

AXES = (4, 3, 2)
"""Of ``(B, C, X, Y, Z)``: what axial, coronal and sagittal slices are cut across."""


def build(model: Planes, plan: Plan) -> nn.Module:
    """``(B, in_channels, *patch)`` to logits ``(B, outputs, *patch)``; while training also each view's."""
    return Views(model, plan)


def slices_of(volume: Tensor, axis: int, neighbours: int) -> Tensor:
    """``(B, C, X, Y, Z)`` to its slices across an axis of ``n``, ``(B * n, C * (2 * neighbours + 1), *rest)``."""
    slices_BNCHW = volume.movedim(axis, 1)
    count = slices_BNCHW.shape[1]
    places = torch.arange(count, device=volume.device)
    seen = [
        slices_BNCHW.index_select(1, (places + offset).clamp(0, count - 1))
        for offset in range(-neighbours, neighbours + 1)
    ]
    return torch.cat(seen, dim=2).flatten(0, 1)


def volume_of(slices: Tensor, axis: int, count: int) -> Tensor:
    """``(B * count, C, *rest)`` to ``(B, C, X, Y, Z)``."""
    return torch.unflatten(slices, 0, (-1, count)).movedim(1, axis)


class Views(nn.Module):
    """``views``: one U-Net for each of axial, coronal and sagittal slices."""

    def __init__(self, model: Planes, plan: Plan) -> None:
        super().__init__()
        self.neighbours = model.neighbours
        self.views = nn.ModuleList(
            plain_unet(
                2,
                plan.in_channels * (2 * model.neighbours + 1),
                plan.outputs,
                model.channels,
                norm=model.norm,
                dropout=model.dropout,
            )
            for _ in AXES
        )
        self.fusion = _mean_of_views(plan.outputs) if model.fusion == "learned" else None
        self.output_weights = (1 / 2, 1 / 6, 1 / 6, 1 / 6)

    def forward(self, image: Tensor) -> Tensor | tuple[Tensor, ...]:
        """The fused logits; while training a tuple of these and each view's."""
        each = [
            volume_of(view(slices_of(image, axis, self.neighbours)), axis, image.shape[axis])
            for view, axis in zip(self.views, AXES, strict=True)
        ]
        known = [logits.log_softmax(1) for logits in each]
        fused: Tensor = (
            torch.stack(known).mean(0) if self.fusion is None else self.fusion(torch.cat(known, dim=1))
        )
        return (fused, *each) if self.training else fused


def _mean_of_views(outputs: int) -> nn.Conv3d:
    """A convolution of kernel 1 that is the mean of the views until it learns."""
    fusion = nn.Conv3d(len(AXES) * outputs, outputs, 1)
    with torch.no_grad():
        mean = torch.eye(outputs).repeat(1, len(AXES)) / len(AXES)
        fusion.weight.copy_(mean[..., None, None, None])
        nn.init.zeros_(fusion.bias) if fusion.bias is not None else None
    return fusion
