"""A U-Net trained against a discriminator (Luc et al. 2016, equation 1), in 2D and 3D, with one optimizer and one step for both.

The discriminator sees the image and a segmentation, which is the label or the U-Net's probabilities, and says at each place which
it was. It learns by binary cross entropy; a gradient reversal layer (Ganin and Lempitsky 2015, section 3.1) lets the same term
teach the U-Net the opposite, times ``model.weight``, the paper's lambda. So the U-Net makes the discriminator's loss large, where
the paper in practice makes the opposite loss small (section 3.2); and both learn in every step, where the paper takes turns.

Only the U-Net runs in evaluation. A class that was not annotated is background for the discriminator, and a voxel that nobody
looked at is zero in both segmentations, so that neither tells them apart.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import leaky_relu, softplus

from fedmed_common.catalogue.base import Plan
from fedmed_common.catalogue.composed import Adversarial
from fedmed_common.models.parts.convolutions import convolution
from fedmed_common.models.parts.norms import make_norm
from fedmed_common.models.parts.plain_unet import plain_unet
from fedmed_common.site_config import UNLABELLED
from fedmed_common.tasks.losses import merged, one_hot, seen

SLOPE = 0.2


def build(model: Adversarial, plan: Plan) -> nn.Module:
    """``(B, in_channels, *patch)`` to logits ``(B, outputs, *patch)``; the adversarial term is ``objective_extra``."""
    return Duel(model, plan)


def reversed_gradient(maps: Tensor, weight: float) -> Tensor:
    """``maps`` as they are, whose gradient is times ``-weight``."""
    fixed = maps.detach()
    return fixed - weight * (maps - fixed)


class Discriminator(nn.Module):
    """Strided convolutions with leaky ReLUs; the result is above zero where it takes a segmentation for a label."""

    def __init__(self, model: Adversarial, plan: Plan) -> None:
        super().__init__()
        channels, dimensions = model.discriminator, plan.dimensions
        self.first = convolution(
            dimensions, plan.in_channels + plan.outputs, channels[0], 3, stride=2, bias=True
        )
        self.levels = nn.ModuleList(
            nn.Sequential(
                convolution(dimensions, before, after, 3, stride=2),
                make_norm(model.norm, after, dimensions),
                nn.LeakyReLU(SLOPE),
            )
            for before, after in pairwise(channels)
        )
        self.last = convolution(dimensions, channels[-1], 1, 1, bias=True)

    def forward(self, image: Tensor, segmentation: Tensor) -> Tensor:
        """``(B, in_channels, *S)`` and ``(B, outputs, *S)`` to ``(B, places)``."""
        maps = leaky_relu(self.first(torch.cat([image, segmentation], dim=1)), SLOPE)
        for level in self.levels:
            maps = level(maps)
        places: Tensor = self.last(maps).flatten(1).float()
        return places


class Duel(nn.Module):
    """``segmentor`` and ``discriminator``."""

    def __init__(self, model: Adversarial, plan: Plan) -> None:
        super().__init__()
        self.weight = model.weight
        self.segmentor = plain_unet(
            plan.dimensions,
            plan.in_channels,
            plan.outputs,
            model.channels,
            norm=model.norm,
            dropout=model.dropout,
        )
        self.discriminator = Discriminator(model, plan)

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.segmentor(image)
        return logits

    def objective_extra(self, image: Tensor, outputs: Tensor, target: Tensor, annotated: Tensor) -> Tensor:
        """Each sample's loss of the discriminator, ``(B,)``: the mean over places, of the label's and the probabilities' terms.

        ``outputs``: the logits; ``target`` int64 ``(B, *S)``; ``annotated`` bool ``(B, outputs - 1)``.
        """
        log_probability, known = merged(outputs.float(), annotated)
        counted = known.reshape(*known.shape, *[1] * (target.dim() - 1)) & (target != UNLABELLED)[:, None]
        fake = reversed_gradient(log_probability.exp().where(counted, 0.0), self.weight)
        real = one_hot(seen(target, annotated), outputs.shape[1]).to(fake.dtype)
        on_real, on_fake = self.discriminator(image, real), self.discriminator(image, fake)
        return softplus(-on_real).mean(1) + softplus(on_fake).mean(1)
