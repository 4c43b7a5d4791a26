"""How well scores tell those who have something from those who have not: of one class, over a site's patients.

Everything takes ``truth``, bool ``(N,)``, and the probability that was predicted, float ``(N,)``.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

BINS = 15

Truth = NDArray[np.bool_]
Scores = NDArray[np.float64]


def auroc(truth: Truth, score: Scores) -> float:
    """The chance that one who has it gets a higher score than one who has not; a tie counts half.

    The area under the receiver operating characteristic, from the ranks: Hanley and McNeil 1982, Radiology 143. NaN where all,
    or none, have it, or a score is NaN.
    """
    positives = int(truth.sum())
    negatives = truth.size - positives
    if not positives or not negatives or np.isnan(score).any():
        return float("nan")
    _, place, counts = np.unique(score, return_inverse=True, return_counts=True)
    rank = (np.cumsum(counts) - (counts - 1) / 2)[place]
    return float((rank[truth].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def average_precision(truth: Truth, score: Scores) -> float:
    """The area under the precision-recall curve: each threshold's precision, weighted by the recall that it adds.

    Without interpolation, which would be too optimistic (Davis and Goadrich 2006, ICML). NaN where none have it, or a
    score is NaN.
    """
    positives = int(truth.sum())
    if not positives or np.isnan(score).any():
        return float("nan")
    order = np.argsort(-score, kind="stable")
    last_of_tie = np.append(np.diff(score[order]) != 0, True)
    found = np.cumsum(truth[order])[last_of_tie]
    called = np.flatnonzero(last_of_tie) + 1
    return float((np.diff(found, prepend=0) * found / called).sum() / positives)


def calibration_error(truth: Truth, score: Scores, bins: int = BINS) -> float:
    """How far the predicted probability is from the share who have it, mean over patients: the expected calibration error.

    Guo et al. 2017, 'On calibration of modern neural networks', ICML, equation 3, with 15 bins of equal width ``(low, high]``;
    theirs is of the confidence in the predicted class, ours of each class's own probability.
    """
    place = np.clip(np.ceil(score * bins).astype(np.intp) - 1, 0, bins - 1)
    surplus = np.bincount(place, weights=score - truth, minlength=bins)
    return float(np.abs(surplus).sum() / truth.size)
