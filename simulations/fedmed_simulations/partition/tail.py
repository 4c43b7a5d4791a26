"""A long tail out of real patients: who is left out of training, so that rare classes are rare."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def tail_aims(counts: NDArray[np.int64], imbalance: float) -> NDArray[np.int64]:
    """How many training patients are to show each class, ``(K,)``: class k of K in the order of frequency
    ``head * imbalance ** (-k / (K - 1))``, and never fewer than one; 0 for a class that nobody shows, which is none of the K.

    The head, the commonest class, stays as it is. Cui et al., "Class-balanced loss based on effective number of samples", 2019,
    section 5.1, make their long-tailed sets by the same curve.
    """
    aims = np.zeros_like(counts)
    ranked = [int(k) for k in np.argsort(-counts, kind="stable") if counts[k]]
    for rank, k in enumerate(ranked):
        share = imbalance ** (-rank / max(1, len(ranked) - 1))
        aims[k] = max(1, round(float(counts[ranked[0]]) * share))
    return aims


def kept_in_tail(shows: NDArray[np.bool_], imbalance: float, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Which of the patients ``(N, K)`` stay, ``(N,)``, so that the numbers who show each class come near ``tail_aims``.

    Patients are left out one at a time, each time one whose loss brings the sum over classes of ``|log(count / aim)|`` down most,
    until nobody's does. Where each shows one class, every class ends as near to its aim as whole patients are, or keeps
    all it has. Where patients show several, one with a class that is too common is kept as long as the patient's other classes
    would suffer more; where all show everything, all stay. Who shows nothing stays.
    """
    patterns, which = np.unique(shows, axis=0, return_inverse=True)
    members = [
        rng.permutation(np.flatnonzero(which.ravel() == place)).tolist() for place in range(len(patterns))
    ]
    counts = shows.sum(axis=0)
    aims = tail_aims(counts, imbalance)
    kept = np.ones(len(shows), bool)
    while len(patterns):
        gain = np.round(patterns @ (_off(counts, aims) - _off(counts - 1, aims)), 9)
        gain[[not left for left in members]] = 0.0
        best = int(gain.argmax())
        if gain[best] <= 0:
            break
        kept[members[best].pop()] = False
        counts = counts - patterns[best]
    return kept


def _off(counts: NDArray[np.int64], aims: NDArray[np.int64]) -> NDArray[np.float64]:
    """How far each class is from its aim; a class that is about to be lost, beyond any other."""
    ratio = np.log(np.maximum(counts, 1) / np.maximum(aims, 1))
    return np.where(counts > 0, np.abs(ratio), 1e6) * (aims > 0)
