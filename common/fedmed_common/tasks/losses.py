"""Segmentation losses: ``(logits, label, annotated) -> (B,)``, one number a sample, so that no sample depends on its batch.

Shapes: logits ``(B, C, *S)`` float32, background in channel 0; label int64 ``(B, *S)``; annotated bool ``(B, C - 1)``, which on
the CPU spares a GPU one wait.

A class that nobody looked for in a sample counts as part of its background, whose probability is then the sum of theirs: the
marginal loss of Shi et al. 2021, 'Marginal loss and exclusion loss for partially supervised multi-organ segmentation', Medical
Image Analysis 70. Where the label shows such a class all the same, it is read as background.

A voxel whose label is ``UNLABELLED`` counts for nothing, in any loss: nobody looked at it (sparse annotation, Çiçek et al. 2016,
'3D U-Net', MICCAI, section 2). The other losses are in ``losses_overlap``, ``losses_voxelwise`` and ``losses_border``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from fedmed_common.site_config import UNLABELLED

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""``(logits, label, annotated) -> (B,)``: each sample's own loss."""


def over_labelled_voxels(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A loss that does not ask where a voxel lies, as one that leaves out unlabelled voxels; 0 of a sample without any other."""

    @wraps(loss)
    def sparse(logits: Tensor, label: Tensor, annotated: Tensor, **settings: Any) -> Tensor:
        labelled = label != UNLABELLED
        if bool(labelled.all()):
            return loss(logits, label, annotated, **settings)
        samples = zip(logits, label, annotated, labelled, strict=True)
        return torch.cat(
            [
                loss(one[None, :, kept], truth[None, kept], known[None], **settings)
                if bool(kept.any())
                else one.sum()[None] * 0.0
                for one, truth, known, kept in samples
            ]
        )

    return sparse


@over_labelled_voxels
def dice_ce(logits: Tensor, label: Tensor, annotated: Tensor, *, weights: Tensor | None = None) -> Tensor:
    """Dice plus cross entropy, equally weighted.

    ``weights`` ``(C,)``: by output what a voxel of it weighs in the cross entropy, and its class in the mean of the Dice terms.
    """
    truth_BN = visible(label, annotated)
    probability_BCN, log_true_BN = _likelihood(logits, truth_BN)
    return _dice(probability_BCN, log_true_BN, truth_BN, weights) + _cross_entropy(
        probability_BCN, log_true_BN, truth_BN, annotated, weights
    )


@over_labelled_voxels
def dice(logits: Tensor, label: Tensor, annotated: Tensor) -> Tensor:
    """One minus the soft Dice overlap, mean over the foreground classes that the sample shows; zero where it shows none.

    ``2 * sum(p * g) / (sum(p) + sum(g))``: the Dice loss of Milletari et al. 2016 (V-Net) with first powers below the line, as
    MONAI and nnU-Net have it. A class that the sample does not show has no term: its gradient could only push it down.
    """
    truth_BN = visible(label, annotated)
    return _dice(*_likelihood(logits, truth_BN), truth_BN)


@over_labelled_voxels
def cross_entropy(logits: Tensor, label: Tensor, annotated: Tensor) -> Tensor:
    """Mean over the sample's voxels of the negative log-probability of the true class."""
    truth_BN = visible(label, annotated)
    return _cross_entropy(*_likelihood(logits, truth_BN), truth_BN, annotated)


def visible(label: Tensor, annotated: Tensor) -> Tensor:
    """The label ``(B, N)`` without unannotated classes."""
    flat = label.flatten(1)
    if bool(annotated.all()):
        return flat
    return flat * pad(annotated, (1, 0), value=True).to(label.device).gather(1, flat)


def _likelihood(logits: Tensor, truth_BN: Tensor) -> tuple[Tensor, Tensor]:
    """Each class's probability ``(B, C, N)`` and the true one's logarithm ``(B, N)``."""
    log_probability = logits.flatten(2).log_softmax(1)
    return log_probability.exp(), log_probability.gather(1, truth_BN[:, None])[:, 0]


def _dice(
    probability_BCN: Tensor, log_true_BN: Tensor, truth_BN: Tensor, weights: Tensor | None = None
) -> Tensor:
    """Sums over a boolean one-hot, not a scatter, whose sums come out differently from run to run on a GPU."""
    classes = torch.arange(1, probability_BCN.shape[1], device=truth_BN.device)
    mask_BKN = truth_BN[:, None] == classes[:, None]
    voxels = mask_BKN.sum(2)
    present = voxels > 0
    both = (log_true_BN.exp()[:, None] * mask_BKN).sum(2)
    overlap = 2 * both / (probability_BCN.sum(2)[:, 1:] + voxels).where(present, 1.0)
    if weights is None:
        return ((1 - overlap) * present).sum(1) / present.sum(1).clamp(min=1)
    shares = present * weights[1:]
    return ((1 - overlap) * shares).sum(1) / shares.sum(1).clamp(min=torch.finfo(shares.dtype).tiny)


def _cross_entropy(
    probability_BCN: Tensor,
    log_true_BN: Tensor,
    truth_BN: Tensor,
    annotated: Tensor,
    weights: Tensor | None = None,
) -> Tensor:
    each = 1.0 if weights is None else weights[truth_BN]
    if bool(annotated.all()):
        return -(log_true_BN * each).mean(1)
    hidden = ~annotated.to(truth_BN.device)
    hidden_BN = (probability_BCN[:, 1:] * hidden[..., None]).sum(1)
    log_hidden = (
        hidden_BN.clamp(min=torch.finfo(hidden_BN.dtype).tiny)
        .log()
        .masked_fill(~hidden.any(1, keepdim=True), -torch.inf)
    )
    merged = torch.logaddexp(log_true_BN, log_hidden)
    return -(merged.where(truth_BN == 0, log_true_BN) * each).mean(1)


def merged(logits: Tensor, annotated: Tensor) -> tuple[Tensor, Tensor]:
    """The logarithm of each class's probability ``(B, C, *S)``, and which classes count ``(B, C)``.

    The background's probability is the sum of its own and of the unannotated classes', which count no more.
    """
    known_BC = pad(annotated, (1, 0), value=True).to(logits.device)
    log_probability = logits.log_softmax(1)
    if bool(annotated.all()):
        return log_probability, known_BC
    hidden = ~known_BC.reshape(*known_BC.shape, *[1] * (logits.dim() - 2))
    not_background = (~hidden).clone()
    not_background[:, 0] = False
    background = log_probability.masked_fill(not_background, -torch.inf).logsumexp(1, keepdim=True)
    return torch.cat([background, log_probability[:, 1:]], 1), known_BC


def seen(label: Tensor, annotated: Tensor) -> Tensor:
    """The label ``(B, *S)`` without unannotated classes; what is unlabelled stays so."""
    labelled = label != UNLABELLED
    shown = visible(label.where(labelled, 0), annotated).reshape(label.shape)
    return shown.where(labelled, label)


def one_hot(label: Tensor, classes: int) -> Tensor:
    """Which class each voxel shows, bool ``(B, classes, *S)``; an unlabelled one shows none."""
    return torch.stack([label == value for value in range(classes)], 1)


def mean_over(values_BK: Tensor, counted_BK: Tensor) -> Tensor:
    """The mean of the values that count, by sample; 0 where none does."""
    return values_BK.where(counted_BK, 0.0).sum(1) / counted_BK.sum(1).clamp(min=1)
