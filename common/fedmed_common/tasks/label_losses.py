"""Classification losses: ``(logits, target, annotated) -> (B,)``, one number a sample, so that no sample depends on its batch.

Shapes: logits ``(B, K)`` float32; target 0 or 1, int64 ``(B, K)``; annotated bool ``(B, K)``. A class that nobody looked for in a
sample has no term there, and its logit no gradient. A sample without any annotated class has the loss 0.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

GAMMA = 2.0
"""The exponent that Lin et al. found best."""

_LEAST = 1e-7
"""Of what is left to the truth: a power of zero has no finite slope."""


def binary_cross_entropy(logits: Tensor, target: Tensor, annotated: Tensor) -> Tensor:
    """Mean over the annotated classes of each one's cross entropy with its own sigmoid."""
    return _over_annotated(_of_each(logits, target), annotated)


def binary_focal(logits: Tensor, target: Tensor, annotated: Tensor, gamma: float = GAMMA) -> Tensor:
    """The same with each term weighted by ``(1 - p_true) ** gamma``, so that what is known already counts little.

    Lin et al. 2017, 'Focal loss for dense object detection', ICCV, equation 4; without the class weight alpha of
    equation 5.
    """
    terms = _of_each(logits, target)
    return _over_annotated(_left_to(-terms) ** gamma * terms, annotated)


def cross_entropy(logits: Tensor, target: Tensor, annotated: Tensor) -> Tensor:
    """Negative log-probability of the one class that is present, by a softmax over the annotated classes."""
    return -_log_true(logits, target, annotated)


def focal(logits: Tensor, target: Tensor, annotated: Tensor, gamma: float = GAMMA) -> Tensor:
    """The same weighted by ``(1 - p_true) ** gamma``: the focal loss of several classes that exclude each other."""
    log_true = _log_true(logits, target, annotated)
    return -(_left_to(log_true) ** gamma) * log_true


def _left_to(log_true: Tensor) -> Tensor:
    return (1 - log_true.exp()).clamp(min=_LEAST)


def _of_each(logits: Tensor, target: Tensor) -> Tensor:
    return binary_cross_entropy_with_logits(logits, target.to(logits.dtype), reduction="none")


def _over_annotated(terms_BK: Tensor, annotated: Tensor) -> Tensor:
    known = annotated.to(terms_BK.device)
    return terms_BK.where(known, 0.0).sum(1) / known.sum(1).clamp(min=1)


def _log_true(logits: Tensor, target: Tensor, annotated: Tensor) -> Tensor:
    known = annotated.to(logits.device)
    log_probability = logits.where(known, torch.finfo(logits.dtype).min).log_softmax(1)
    return (log_probability * (target.bool() & known)).sum(1)
