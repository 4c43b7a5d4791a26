"""A long tail out of real patients: who is left out of training, so that rare classes are rare."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def tail_aims(shows: NDArray[np.bool_], imbalance: float) -> NDArray[np.int64]:
    """How many of the training patients ``(N, K)`` are to show each class, ``(K,)``.

    Class k in the order of frequency has ``head * imbalance ** (-k / (K - 1))``, and never fewer than one; the head, the
    commonest class, stays as it is. Classes that everybody shows cannot be told apart by leaving patients out: together they are
    one class, the head. A class that nobody shows is none of the K. Cui et al., "Class-balanced loss based on effective number of
    samples", 2019, section 5.1, make long-tailed sets by the same curve.
    """
    counts = shows.sum(axis=0)
    everybody = (counts == len(shows)) & (counts > 0)
    ranked = [int(k) for k in np.argsort(-counts, kind="stable") if counts[k] and not everybody[k]]
    heads = int(everybody.any())
    head = int(counts.max(initial=0))
    aims = np.where(everybody, head, 0).astype(np.int64)
    for rank, k in enumerate(ranked, start=heads):
        aims[k] = max(1, round(head * imbalance ** (-rank / max(1, heads + len(ranked) - 1))))
    return aims


def kept_in_tail(shows: NDArray[np.bool_], imbalance: float, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Which of the training patients ``(N, K)`` stay, ``(N,)``, so that the numbers who show each class come near ``tail_aims``.

    Patients are left out one at a time, each time one whose loss brings the sum over classes of ``|log(count / aim)|`` down most,
    until nobody's does. Where each shows one class, every class ends as near to its aim as whole patients are, or keeps
    all it has. Where patients show several, one with a class that is too common is kept as long as the patient's other classes
    would suffer more; where all show everything, all stay. Who shows nothing stays.
    """
    aims, everybody = tail_aims(shows, imbalance), shows.all(axis=0) & (len(shows) > 0)
    counted = np.concatenate([np.flatnonzero(everybody)[:1], np.flatnonzero(~everybody)])
    patterns, which = np.unique(shows[:, counted], axis=0, return_inverse=True)
    members = [
        rng.permutation(np.flatnonzero(which.ravel() == place)).tolist() for place in range(len(patterns))
    ]
    counts, aims = shows[:, counted].sum(axis=0), aims[counted]
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
