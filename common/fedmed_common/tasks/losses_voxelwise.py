"""Losses that add up over voxels: focal, and the balanced cross entropy of sparse annotation. What they take: see ``losses``."""

from __future__ import annotations

import torch
from torch import Tensor

from fedmed_common.tasks.losses import dice, merged, one_hot, over_labelled_voxels, visible

_LEAST = 1e-7
"""Of what is left to the true class: a power of zero has no finite slope."""


@over_labelled_voxels
def focal(logits: Tensor, label: Tensor, annotated: Tensor, *, gamma: float = 2.0) -> Tensor:
    """Mean over voxels of the cross entropy times (1 - p)^gamma, p the true class's probability: what is easy counts little.

    Lin et al. 2017, 'Focal loss for dense object detection', ICCV, eq. 4, over classes that exclude each other and without its
    alpha. With gamma 0 it is ``cross_entropy``.
    """
    log_true_BN = log_true(logits, visible(label, annotated), annotated)
    return -((1 - log_true_BN.exp()).clamp(min=_LEAST).pow(gamma) * log_true_BN).mean(1)


@over_labelled_voxels
def dice_focal(logits: Tensor, label: Tensor, annotated: Tensor, *, gamma: float = 2.0) -> Tensor:
    """Dice plus focal, equally weighted."""
    return dice(logits, label, annotated) + focal(logits, label, annotated, gamma=gamma)


@over_labelled_voxels
def sparse_ce(logits: Tensor, label: Tensor, annotated: Tensor) -> Tensor:
    """Cross entropy over labelled voxels, every class that they show weighing as much as any other.

    Çiçek et al. 2016, '3D U-Net', MICCAI, section 2.2: frequent classes get less weight, unlabelled voxels none. The paper does
    not say how much less; here a voxel weighs 1 / (voxels of its class), as in ``class_weights``.
    """
    truth_BN = visible(label, annotated)
    return -(class_weights(truth_BN, logits.shape[1]) * log_true(logits, truth_BN, annotated)).mean(1)


def log_true(logits: Tensor, truth_BN: Tensor, annotated: Tensor) -> Tensor:
    """The logarithm of the true class's probability at each voxel ``(B, N)``."""
    log_probability, _ = merged(logits.flatten(2), annotated)
    return log_probability.gather(1, truth_BN[:, None])[:, 0]


def class_weights(truth_BN: Tensor, classes: int) -> Tensor:
    """A weight for each voxel ``(B, N)``: equal sums for the classes that a sample shows, mean 1."""
    voxels_BC = one_hot(truth_BN, classes).sum(2)
    shown = (voxels_BC > 0).sum(1, keepdim=True)
    weight_BC = truth_BN.shape[1] / (shown * voxels_BC.clamp(min=1)).to(torch.float32)
    return weight_BC.gather(1, truth_BN)
