"""Epsilons beside those of Google's dp-accounting, which computes privacy loss distributions by another program."""

from __future__ import annotations

import pytest
from dp_accounting.pld.privacy_loss_distribution import from_gaussian_mechanism

from fedmed_common.privacy import Spent, calibrate, epsilon

SETTINGS = [
    (1.0, 0.05, 500, 1e-5),
    (0.8, 0.1, 100, 1e-5),
    (2.0, 0.02, 2000, 1e-6),
    (4.0, 0.2, 300, 1e-5),
    (1.2, 1.0, 10, 1e-5),
    (0.7, 0.01, 1000, 1e-5),
    (1.5, 0.3, 50, 1e-4),
    (6.0, 0.5, 1000, 1e-5),
    (0.9, 0.05, 200, 1e-3),
    (3.0, 0.05, 4000, 1e-6),
]


def theirs(sigma: float, rate: float, steps: int, delta: float) -> float:
    """An upper bound, too, at a fine grid."""
    step = from_gaussian_mechanism(sigma, sampling_prob=rate, value_discretization_interval=1e-4)
    return float(step.self_compose(steps).get_epsilon_for_delta(delta))


@pytest.mark.parametrize(("sigma", "rate", "steps", "delta"), SETTINGS)
def test_an_epsilon_is_within_a_hundredth_of_theirs_and_not_below(
    sigma: float, rate: float, steps: int, delta: float
) -> None:
    ours = epsilon([Spent(noise_multiplier=sigma, sampling_rate=rate, steps=steps)], delta)
    other = theirs(sigma, rate, steps, delta)
    assert other * (1 - 1e-4) <= ours <= 1.01 * other


@pytest.mark.parametrize("target", [1.0, 3.0, 8.0])
def test_the_noise_for_an_epsilon_keeps_to_it_by_their_account_and_hardly_more(target: float) -> None:
    sigma = calibrate(target, 1e-5, 0.05, 400)
    assert 0.97 * target <= theirs(sigma, 0.05, 400, 1e-5) <= target
