"""The accountant gives the published figures, bounds what it cannot compute, and its noise keeps what it promises."""

from __future__ import annotations

import math
from typing import Any

import pytest
from opacus.accountants import PRVAccountant, RDPAccountant
from opacus.accountants.analysis.rdp import compute_rdp
from pydantic import ValidationError

from fedmed_common import privacy
from fedmed_common.config import Experiment
from fedmed_common.errors import ConfigError
from fedmed_common.privacy import Spent, calibrate, epsilon, merged


def _spent(sigma: float, rate: float, steps: int) -> Spent:
    return Spent(noise_multiplier=sigma, sampling_rate=rate, steps=steps)


def _experiment(**settings: Any) -> Experiment:
    return Experiment.model_validate(
        {
            "name": "x",
            "rounds": 10,
            "task": {"classes": ["a"], "loss": settings.pop("loss", "dice_ce")},
            "data": {"patch": [16, 16, 16]},
            "model": {"norm": settings.pop("norm", "instance")},
            "train": {"steps": 50, **settings.pop("train", {})},
            "privacy": {"epsilon": 8.0, "sampling_rate": 0.05, "spare_rounds": 0, **settings},
        }
    )


def test_a_known_case_costs_what_is_known() -> None:
    """sigma 1, q 0.05, 500 steps at delta 1e-5: 8.30 by Renyi divergences, 7.53 by the loss distribution."""
    case = [_spent(1.0, 0.05, 500)]
    assert epsilon(case, 1e-5, "rdp") == pytest.approx(8.30, abs=0.01)
    assert epsilon(case, 1e-5) == pytest.approx(7.53, abs=0.01)


@pytest.mark.parametrize("case", [(1.0, 0.05, 500), (2.0, 0.2, 300), (1.3, 0.01, 4000)])
def test_the_figures_are_those_of_opacus(case: tuple[float, float, int]) -> None:
    """Step by step, as its own users count them; the tighter of its two bounds."""
    found = {}
    for name, kind in (("prv", PRVAccountant), ("rdp", RDPAccountant)):
        accountant = kind()
        for _ in range(case[2]):
            accountant.step(noise_multiplier=case[0], sample_rate=case[1])
        found[name] = accountant.get_epsilon(1e-5)
    assert epsilon([_spent(*case)], 1e-5, "rdp") == found["rdp"]
    assert epsilon([_spent(*case)], 1e-5) == found["prv"] < found["rdp"]


def test_the_published_figure_of_the_moments_accountant() -> None:
    """Abadi et al. 2016, section 3.2: q = 0.01, sigma = 4, 10000 steps cost 1.26 at delta 1e-5, and 9.34 by strong composition.

    With the paper's own way from moments to epsilon (theorem 2) the figure is theirs; later ways are tighter.
    """
    orders = RDPAccountant.DEFAULT_ALPHAS
    moments = compute_rdp(q=0.01, noise_multiplier=4.0, steps=10_000, orders=orders)
    theirs = min(m + math.log(1e5) / (order - 1) for m, order in zip(moments, orders, strict=True))
    assert theirs == pytest.approx(1.26, abs=0.005)
    case = [_spent(4.0, 0.01, 10_000)]
    assert 0.9 < epsilon(case, 1e-5) < epsilon(case, 1e-5, "rdp") < theirs


def test_without_sampling_it_is_the_analytic_gaussian() -> None:
    """One step at q = 1: delta = Phi(1/2s - e s) - exp(e) Phi(-1/2s - e s) (Balle and Wang 2018, theorem 8)."""
    sigma = 2.0

    def phi(x: float) -> float:
        return 0.5 * math.erfc(-x / math.sqrt(2))

    found = epsilon([_spent(sigma, 1.0, 1)], 1e-5)
    delta = phi(0.5 / sigma - found * sigma) - math.exp(found) * phi(-0.5 / sigma - found * sigma)
    assert delta <= 1e-5
    assert found - 0.02 > 0
    less = found - 0.03
    assert phi(0.5 / sigma - less * sigma) - math.exp(less) * phi(-0.5 / sigma - less * sigma) > 1e-5


@pytest.mark.parametrize(("target", "sigma"), [(8.0, 0.97), (3.0, 1.77), (1.0, 4.34)])
def test_the_noise_for_an_epsilon_is_enough_and_no_more(target: float, sigma: float) -> None:
    found = calibrate(target, 1e-5, 0.05, 500)
    assert found == pytest.approx(sigma, abs=0.01)
    assert epsilon([_spent(found, 0.05, 500)], 1e-5) <= target
    assert epsilon([_spent(found - 0.005, 0.05, 500)], 1e-5) > target


def test_the_order_and_the_number_of_rows_do_not_matter() -> None:
    rows = [_spent(1.0, 0.05, 10), _spent(2.0, 0.1, 7), _spent(1.0, 0.05, 5)] * 3
    assert merged(rows) == (_spent(1.0, 0.05, 45), _spent(2.0, 0.1, 21))
    assert epsilon(rows, 1e-5) == epsilon(reversed(rows), 1e-5) == epsilon(merged(rows), 1e-5)
    assert epsilon(rows, 1e-5) > epsilon(rows[:-1], 1e-5)
    assert epsilon([], 1e-5) == 0.0


@pytest.mark.parametrize("case", [(0.1, 0.5, 2000), (1e-4, 1.0, 100_000), (30.0, 0.3, 100_000)])
def test_what_would_take_all_memory_gets_the_looser_bound(case: tuple[float, float, int]) -> None:
    """The loss distribution of the first takes more than 16 GB; an order must not."""
    assert epsilon([_spent(*case)], 1e-5) == epsilon([_spent(*case)], 1e-5, "rdp") > 8


def test_what_no_noise_keeps_is_said() -> None:
    with pytest.raises(ConfigError, match="no noise keeps"):
        calibrate(1e-4, 1e-5, 1.0, 10_000)


def test_gaussian_differential_privacy_is_not_offered() -> None:
    with pytest.raises(ConfigError, match="accountant"):
        epsilon([_spent(1.0, 0.05, 500)], 1e-5, "gdp")  # type: ignore[arg-type]


def test_an_experiment_names_its_noise_or_gets_it() -> None:
    assert privacy.noise_multiplier(_experiment()) == calibrate(8.0, 1e-5, 0.05, 500)
    assert privacy.noise_multiplier(_experiment(noise_multiplier=1.5)) == 1.5
    assert privacy.noise_multiplier(_experiment(spare_rounds=2)) == calibrate(8.0, 1e-5, 0.05, 600)
    with pytest.raises(ConfigError, match=r"privacy\.noise_multiplier.*costs an epsilon"):
        privacy.check(_experiment(noise_multiplier=0.9))


def test_what_privacy_cannot_go_with_is_refused_by_its_field() -> None:
    with pytest.raises(ConfigError, match=r"task\.loss"):
        privacy.check(_experiment(loss="batch_dice"))
    with pytest.raises(ValidationError, match=r"model\.norm"):
        _experiment(norm="batch")
    for train in ({"precision": "fp16"}, {"processes": 2}):
        with pytest.raises(ValidationError, match=r"train\.processes"):
            _experiment(train=train)
    for field, value in (("epsilon", 0.0), ("sampling_rate", 1.1), ("clipping_norm", 0.0), ("delta", 1.0)):
        with pytest.raises(ValidationError, match=field):
            _experiment(**{field: value})
    plain = _experiment().model_copy(update={"privacy": None})
    privacy.check(plain)
