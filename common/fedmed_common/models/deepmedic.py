"""DeepMedic (Kamnitsas et al. 2017, sections 2.2 to 2.4 and figure 5), its two pathways, in 2D and 3D; its CRF is ``[task.crf]``.

The paper cuts two patches around each place, one from the image and one, three times as wide, from the image made three times
as coarse, and its convolutions do not pad. Ours takes one patch whole, makes it three times as coarse itself and pads, so that
logits are as large as the image: what the coarse pathway sees of the surroundings ends with the patch, which should therefore be
larger than the 51 voxels per axis that this pathway's kernels reach.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from fedmed_common.catalogue.base import Norm, Plan
from fedmed_common.catalogue.fully_convolutional import DeepMedic
from fedmed_common.models.parts.convolutions import convolution, scaled
from fedmed_common.models.parts.norms import make_norm
from fedmed_common.models.parts.ushape import he_normal

FACTOR = 3
"""How much coarser the second pathway's image is, per axis."""


def _layer(dimensions: int, entering: int, leaving: int, kernel: int, norm: Norm) -> nn.Sequential:
    return nn.Sequential(
        convolution(dimensions, entering, leaving, kernel),
        make_norm(norm, leaving, dimensions),
        nn.PReLU(leaving),
    )


def _pathway(dimensions: int, features: Sequence[int], norm: Norm) -> nn.Sequential:
    return nn.Sequential(*(_layer(dimensions, *pair, 3, norm) for pair in pairwise(features)))


class Network(nn.Module):
    """``fine`` and ``coarse`` pathways, ``joined`` layers that see one voxel, ``head``."""

    def __init__(self, model: DeepMedic, plan: Plan) -> None:
        super().__init__()
        dimensions = plan.dimensions
        features = [scaled(number, model.width) for number in model.features]
        joined = [scaled(number, model.width) for number in model.joined]
        self.fine = _pathway(dimensions, (plan.in_channels, *features), model.norm)
        self.coarse = _pathway(dimensions, (plan.in_channels, *features), model.norm)
        mean = nn.AvgPool2d if dimensions == 2 else nn.AvgPool3d
        self.coarsen = mean(FACTOR, ceil_mode=True)
        self.joined = nn.Sequential()
        for place, pair in enumerate(pairwise((2 * features[-1], *joined)), start=1):
            if place == len(joined):
                self.joined.append(nn.Dropout(model.dropout))
            self.joined.append(_layer(dimensions, *pair, 1, model.norm))
        self.joined.append(nn.Dropout(model.dropout))
        self.head = convolution(dimensions, joined[-1], plan.outputs, 1, bias=True)
        he_normal(self)

    def forward(self, image: Tensor) -> Tensor:
        context = interpolate(self.coarse(self.coarsen(image)), scale_factor=FACTOR, mode="nearest")
        for axis in range(2, image.ndim):
            context = context.narrow(axis, 0, image.shape[axis])
        logits: Tensor = self.head(self.joined(torch.cat([self.fine(image), context], dim=1)))
        return logits


def build(model: DeepMedic, plan: Plan) -> nn.Module:
    """``(B, in_channels, *patch)`` to logits ``(B, outputs, *patch)``."""
    return Network(model, plan)
