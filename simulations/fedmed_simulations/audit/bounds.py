"""From what an attack got right to the least privacy loss that explains it."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy import stats

_CONFIDENCE = 0.95
_THRESHOLDS = 19


def separation(without: NDArray[np.float64], with_it: NDArray[np.float64]) -> float:
    """The least distance, in deviations, of two normal distributions that explains how well thresholds tell the samples apart.

    At 95 % confidence, by Clopper and Pearson at 19 thresholds together; 0 where they are not told apart. Of one release of a
    Gaussian mechanism with noise multiplier sigma the true distance is 1 / sigma.
    """
    alpha = (1 - _CONFIDENCE) / (2 * _THRESHOLDS)
    thresholds = np.quantile(np.concatenate([without, with_it]), np.linspace(0.05, 0.95, _THRESHOLDS))
    best = 0.0
    for threshold in thresholds:
        wrong, right = int((without > threshold).sum()), int((with_it > threshold).sum())
        most_wrong = (
            stats.beta.ppf(1 - alpha, wrong + 1, len(without) - wrong) if wrong < len(without) else 1.0
        )
        least_right = stats.beta.ppf(alpha, right, len(with_it) - right + 1) if right else 0.0
        if 0 < most_wrong < 1 and 0 < least_right < 1:
            best = max(best, float(stats.norm.ppf(least_right) - stats.norm.ppf(most_wrong)))
    return best


def epsilon_of_guesses(canaries: int, guesses: int, right: int, delta: float) -> float:
    """The least epsilon with which so many of the guesses can be right: 95 % confidence.

    Source: Steinke, Nasr and Jagielski 2023, 'Privacy auditing with one (1) training run', NeurIPS, theorem 5.2 and appendix D.
    """
    low, high = 0.0, 30.0
    for _ in range(60):
        middle = (low + high) / 2
        if _chance(canaries, guesses, right, middle, delta) < 1 - _CONFIDENCE:
            low = middle
        else:
            high = middle
    return low


def _chance(canaries: int, guesses: int, right: int, epsilon: float, delta: float) -> float:
    """An upper bound on the chance that so many guesses are right under (epsilon, delta)."""
    q = 1 / (1 + math.exp(-epsilon))
    plain = float(stats.binom.sf(right - 1, guesses, q))
    sums = np.cumsum(stats.binom.pmf(right - np.arange(1, right + 1), guesses, q))
    slope = float((sums / np.arange(1, right + 1)).max(initial=0.0))
    return min(1.0, plain + 2 * canaries * delta * slope)


def most_advantage(epsilon: float, delta: float) -> float:
    """The largest difference of true and false positives of any membership attack: (e^epsilon - 1 + 2 delta) / (e^epsilon + 1).

    Source: Humphries et al. 2023, 'Investigating membership inference attacks under data dependencies', theorem 1.
    """
    return math.tanh(epsilon / 2) + 2 * delta / (math.exp(min(epsilon, 700.0)) + 1)
