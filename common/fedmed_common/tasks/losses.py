"""Segmentation losses: ``(logits, label) -> (B,)``, one number a sample, so that no sample depends on its batch.

Shapes: logits ``(B, C, *S)``, background in channel 0; label int64 ``(B, *S)``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def dice_ce(logits: Tensor, label: Tensor) -> Tensor:
    """Dice plus cross entropy, equally weighted."""
    log_probability = logits.flatten(2).log_softmax(1)
    return _dice(log_probability.exp(), label) + _cross_entropy(log_probability, label)


def dice(logits: Tensor, label: Tensor) -> Tensor:
    """One minus the soft Dice overlap, mean over the foreground classes that the sample shows; zero where it shows none.

    ``2 * sum(p * g) / (sum(p) + sum(g))``: the Dice loss of Milletari et al. 2016 (V-Net) with first powers below the line, as in
    MONAI's and nnU-Net's. A class that the sample does not show has no term: its gradient could only ever push it down.
    """
    return _dice(logits.flatten(2).softmax(1), label)


def cross_entropy(logits: Tensor, label: Tensor) -> Tensor:
    """Mean over the sample's voxels of the negative log-probability of the true class."""
    return _cross_entropy(logits.flatten(2).log_softmax(1), label)


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "dice_ce": dice_ce,
    "dice": dice,
    "cross_entropy": cross_entropy,
}


def merge_unannotated(logits: Tensor, label: Tensor, annotated: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and labels as if each sample's unannotated classes were part of its background.

    The marginal loss of Shi et al. 2021, 'Marginal loss and exclusion loss for partially supervised multi-organ segmentation',
    Medical Image Analysis 70: the background's probability becomes the sum of its own and of the unannotated classes', since
    where nobody looked for a class, its voxels are labelled background. ``annotated``: bool ``(B, C - 1)``; kept on the CPU, it
    spares a GPU one wait.
    """
    if bool(annotated.all()):
        return logits, label
    hidden = ~annotated.to(logits.device)
    spatial = (1,) * (logits.ndim - 2)
    mask = hidden.reshape(*hidden.shape, *spatial)
    foreground = logits[:, 1:]
    background = torch.cat([logits[:, :1], foreground.masked_fill(~mask, -torch.inf)], dim=1).logsumexp(
        1, keepdim=True
    )
    merged = torch.cat([background, foreground.masked_fill(mask, -torch.inf)], dim=1)
    keep = torch.nn.functional.pad(~hidden, (1, 0))
    return merged, label * keep.gather(1, label.flatten(1)).reshape(label.shape)


def _cross_entropy(log_probability_BCN: Tensor, label: Tensor) -> Tensor:
    return -log_probability_BCN.gather(1, label.flatten(1)[:, None])[:, 0].mean(1)


def _dice(probability_BCN: Tensor, label: Tensor) -> Tensor:
    """A boolean one-hot and no scatter: on a GPU, scattered sums come out differently from run to run."""
    classes = torch.arange(1, probability_BCN.shape[1], device=label.device)
    truth_BKN = label.flatten(1)[:, None] == classes[:, None]
    foreground_BKN = probability_BCN[:, 1:]
    voxels = truth_BKN.sum(2)
    present = voxels > 0
    overlap = 2 * (foreground_BKN * truth_BKN).sum(2) / (foreground_BKN.sum(2) + voxels).where(present, 1.0)
    return ((1 - overlap) * present).sum(1) / present.sum(1).clamp(min=1)
