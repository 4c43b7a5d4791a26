"""Losses of overlap: generalised Dice, Tversky, and the Dice of a whole batch. What they take and give: see ``losses``."""

from __future__ import annotations

from torch import Tensor

from fedmed_common.site_config import UNLABELLED
from fedmed_common.tasks.losses import (
    cross_entropy,
    mean_over,
    merged,
    one_hot,
    over_labelled_voxels,
    seen,
    visible,
)


@over_labelled_voxels
def generalised_dice(logits: Tensor, label: Tensor, annotated: Tensor) -> Tensor:
    """One minus a Dice over all classes together, the background too, each weighted by 1 / (its voxels)^2.

    Sudre et al. 2017, 'Generalised Dice overlap as a deep learning loss function for highly unbalanced segmentations', DLMIA,
    section 2.1. A class that a sample does not show, whose weight would be infinite, has none.
    """
    probability_BCN, truth_BCN, known_BC = _shares(logits, label, annotated)
    voxels_BC = truth_BCN.sum(2)
    weight_BC = (voxels_BC > 0) * known_BC / voxels_BC.clamp(min=1).float().square()
    both = (probability_BCN * truth_BCN).sum(2)
    either = probability_BCN.sum(2) + voxels_BC
    return 1 - 2 * (weight_BC * both).sum(1) / (weight_BC * either).sum(1)


@over_labelled_voxels
def tversky(
    logits: Tensor, label: Tensor, annotated: Tensor, *, alpha: float = 0.3, beta: float = 0.7
) -> Tensor:
    """One minus the mean Tversky index of the present classes: false positives weigh ``alpha``, false negatives ``beta``.

    Salehi et al. 2017, 'Tversky loss function for image segmentation using 3D fully convolutional deep networks', MLMI, eq. 3;
    the defaults are its best. With both 0.5 it is ``dice``.
    """
    probability_BCN, truth_BCN, known_BC = _shares(logits, label, annotated)
    probability, truth = probability_BCN[:, 1:], truth_BCN[:, 1:]
    present = truth.any(2) & known_BC[:, 1:]
    both = (probability * truth).sum(2)
    false_positive = (probability * ~truth).sum(2)
    false_negative = truth.sum(2) - both
    index = both / (both + alpha * false_positive + beta * false_negative).where(present, 1.0)
    return mean_over(1 - index, present)


def batch_dice(logits: Tensor, label: Tensor, annotated: Tensor) -> Tensor:
    """One minus the Dice of the classes present in the batch, whose voxels are counted as those of one image; B times the same.

    As nnU-Net's ``batch_dice`` (Isensee et al. 2021, Nature Methods 18), which is steadier where a patch shows little of a class.
    Without its smoothing: a class that no sample of the batch shows has no term. A sample counts for the classes that are
    annotated in it. The samples of a batch are coupled: nothing that needs each sample's own gradient can use it.
    """
    log_probability, known_BC = merged(logits, annotated)
    labelled = (label != UNLABELLED).flatten(1)[:, None]
    counted = labelled & known_BC[:, 1:, None]
    truth = one_hot(seen(label, annotated), logits.shape[1])[:, 1:].flatten(2) & counted
    probability = log_probability[:, 1:].flatten(2).exp() * counted
    voxels = truth.sum((0, 2))
    present = voxels > 0
    both = (probability * truth).sum((0, 2))
    overlap = 2 * both / (probability.sum((0, 2)) + voxels).where(present, 1.0)
    loss = ((1 - overlap) * present).sum() / present.sum().clamp(min=1)
    return loss.expand(len(logits))


def batch_dice_ce(logits: Tensor, label: Tensor, annotated: Tensor) -> Tensor:
    """``batch_dice`` plus cross entropy, equally weighted: what nnU-Net trains with where it sets ``batch_dice``."""
    return batch_dice(logits, label, annotated) + cross_entropy(logits, label, annotated)


def _shares(logits: Tensor, label: Tensor, annotated: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Probabilities and truth ``(B, C, N)``, and which classes count ``(B, C)``."""
    log_probability, known_BC = merged(logits, annotated)
    truth = one_hot(visible(label, annotated), logits.shape[1])
    return log_probability.flatten(2).exp(), truth, known_BC
