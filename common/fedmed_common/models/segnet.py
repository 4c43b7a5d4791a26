"""SegNet (Badrinarayanan et al. 2017, section 3 and figure 2): VGG-16 and its mirror, in 2D and 3D.

A pool hands over where its largest values were, not the values: the mirrored stage puts its own there, zeros elsewhere, and
makes them dense by convolutions. The paper's norm is batch norm; ours is what ``model.norm`` says, in place of biases.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import max_pool2d, max_pool3d

from fedmed_common.catalogue.base import Plan
from fedmed_common.catalogue.fully_convolutional import SegNet
from fedmed_common.models.parts.convolutions import convolution, normed, scaled
from fedmed_common.models.parts.ushape import he_normal
from fedmed_common.models.parts.vgg import STAGES, vgg16


def pool(maps: Tensor) -> tuple[Tensor, Tensor]:
    """The largest of 2 voxels per axis ``(B, C, *S / 2)``, and which voxels those are: bool ``(B, C, *S)``."""
    take = max_pool2d if maps.ndim == 4 else max_pool3d
    largest, places = take(maps, 2, return_indices=True)
    every = torch.arange(maps[0, 0].numel(), device=maps.device).reshape(maps.shape[2:])
    return largest, repeated(places) == every


def unpool(maps: Tensor, places: Tensor) -> Tensor:
    """``(B, C, *S / 2)`` to ``(B, C, *S)``: each value at its place, zeros elsewhere.

    As ``max_unpool2d``, whose sum order on a GPU is not determined and which ONNX has not in 3D.
    """
    return repeated(maps) * places.to(maps.dtype)


def repeated(maps: Tensor) -> Tensor:
    """Each voxel twice per axis."""
    for axis in range(2, maps.ndim):
        maps = maps.repeat_interleave(2, dim=axis)
    return maps


class Network(nn.Module):
    """``left`` finest first, ``right`` coarsest first; the last convolution gives the logits."""

    def __init__(self, model: SegNet, plan: Plan) -> None:
        super().__init__()
        self.left = nn.ModuleList(vgg16(plan.dimensions, plan.in_channels, model.norm, model.width))
        first = scaled(STAGES[0][0], model.width)
        self.right = nn.ModuleList()
        for place in reversed(range(len(STAGES))):
            widths = [scaled(number, model.width) for number in STAGES[place]]
            leaving = scaled(STAGES[place - 1][-1], model.width) if place else first
            last = [] if place == 0 else [leaving]
            stage = nn.Sequential()
            for entering, number in zip(widths, widths[1:] + last, strict=False):
                stage.append(normed(plan.dimensions, entering, number, 3, model.norm))
            self.right.append(stage)
        self.head = convolution(plan.dimensions, first, plan.outputs, 3, bias=True)
        he_normal(self)

    def forward(self, image: Tensor) -> Tensor:
        maps = image
        places: list[Tensor] = []
        for stage in self.left:
            maps, found = pool(stage(maps))
            places.append(found)
        for stage in self.right:
            maps = stage(unpool(maps, places.pop()))
        logits: Tensor = self.head(maps)
        return logits

    def checkpoint_blocks(self) -> list[nn.Module]:
        """The stages: what is worth computing twice to save its memory."""
        return [*self.left, *self.right]


def build(model: SegNet, plan: Plan) -> nn.Module:
    """``(B, in_channels, *patch)`` to logits ``(B, outputs, *patch)``."""
    return Network(model, plan)
