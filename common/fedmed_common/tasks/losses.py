"""Segmentation losses: ``(logits, label, annotated) -> (B,)``, one number a sample, so that no sample depends on its batch.

Shapes: logits ``(B, C, *S)`` float32, background in channel 0; label int64 ``(B, *S)``; annotated bool ``(B, C - 1)``, which on
the CPU spares a GPU one wait.

A class that nobody looked for in a sample counts as part of its background, whose probability is then the sum of theirs: the
marginal loss of Shi et al. 2021, 'Marginal loss and exclusion loss for partially supervised multi-organ segmentation', Medical
Image Analysis 70. Where the label shows such a class all the same, it is read as background.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import pad

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def dice_ce(logits: Tensor, label: Tensor, annotated: Tensor) -> Tensor:
    """Dice plus cross entropy, equally weighted."""
    truth_BN = _visible(label, annotated)
    probability_BCN, log_true_BN = _likelihood(logits, truth_BN)
    return _dice(probability_BCN, log_true_BN, truth_BN) + _cross_entropy(
        probability_BCN, log_true_BN, truth_BN, annotated
    )


def dice(logits: Tensor, label: Tensor, annotated: Tensor) -> Tensor:
    """One minus the soft Dice overlap, mean over the foreground classes that the sample shows; zero where it shows none.

    ``2 * sum(p * g) / (sum(p) + sum(g))``: the Dice loss of Milletari et al. 2016 (V-Net) with first powers below the line, as
    MONAI and nnU-Net have it. A class that the sample does not show has no term: its gradient could only push it down.
    """
    truth_BN = _visible(label, annotated)
    return _dice(*_likelihood(logits, truth_BN), truth_BN)


def cross_entropy(logits: Tensor, label: Tensor, annotated: Tensor) -> Tensor:
    """Mean over the sample's voxels of the negative log-probability of the true class."""
    truth_BN = _visible(label, annotated)
    return _cross_entropy(*_likelihood(logits, truth_BN), truth_BN, annotated)


def _visible(label: Tensor, annotated: Tensor) -> Tensor:
    """The label ``(B, N)`` without unannotated classes."""
    flat = label.flatten(1)
    if bool(annotated.all()):
        return flat
    return flat * pad(annotated, (1, 0), value=True).to(label.device).gather(1, flat)


def _likelihood(logits: Tensor, truth_BN: Tensor) -> tuple[Tensor, Tensor]:
    """Each class's probability ``(B, C, N)`` and the true one's logarithm ``(B, N)``."""
    log_probability = logits.flatten(2).log_softmax(1)
    return log_probability.exp(), log_probability.gather(1, truth_BN[:, None])[:, 0]


def _dice(probability_BCN: Tensor, log_true_BN: Tensor, truth_BN: Tensor) -> Tensor:
    """Sums over a boolean one-hot, not a scatter, whose sums come out differently from run to run on a GPU."""
    classes = torch.arange(1, probability_BCN.shape[1], device=truth_BN.device)
    mask_BKN = truth_BN[:, None] == classes[:, None]
    voxels = mask_BKN.sum(2)
    present = voxels > 0
    both = (log_true_BN.exp()[:, None] * mask_BKN).sum(2)
    overlap = 2 * both / (probability_BCN.sum(2)[:, 1:] + voxels).where(present, 1.0)
    return ((1 - overlap) * present).sum(1) / present.sum(1).clamp(min=1)


def _cross_entropy(
    probability_BCN: Tensor, log_true_BN: Tensor, truth_BN: Tensor, annotated: Tensor
) -> Tensor:
    if bool(annotated.all()):
        return -log_true_BN.mean(1)
    hidden = ~annotated.to(truth_BN.device)
    hidden_BN = (probability_BCN[:, 1:] * hidden[..., None]).sum(1)
    log_hidden = (
        hidden_BN.clamp(min=torch.finfo(hidden_BN.dtype).tiny)
        .log()
        .masked_fill(~hidden.any(1, keepdim=True), -torch.inf)
    )
    merged = torch.logaddexp(log_true_BN, log_hidden)
    return -merged.where(truth_BN == 0, log_true_BN).mean(1)
