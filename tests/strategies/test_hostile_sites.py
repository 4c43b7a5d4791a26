"""One hostile site in six sends its update tenfold with the sign changed: which rules hold, how well, and which cannot.

The distance is that of the global model to the optimum of the honest sites. Before the first round it is what training has to
cover; a rule holds where no more than a tenth of it is left."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from quadratics import Array, Quadratics

from fedmed_strategies.aggregators.bulyan import Bulyan
from fedmed_strategies.aggregators.centred_clipping import CentredClipping
from fedmed_strategies.aggregators.coordinates import Median, TrimmedMean
from fedmed_strategies.aggregators.geometric_median import GeometricMedian
from fedmed_strategies.filters.krum import Krum, MultiKrum
from fedmed_strategies.filters.nearest_neighbours import NearestNeighbours
from fedmed_strategies.filters.norm_bound import NormBound
from fedmed_strategies.recipe import Recipe

ROUNDS = 60
NNM = NearestNeighbours()

HOLD = {
    "median": Recipe(aggregator=Median()),
    "trimmed mean": Recipe(aggregator=TrimmedMean(share=0.2)),
    "Multi-Krum": Recipe(filters=(MultiKrum(),)),
    "RFA": Recipe(aggregator=GeometricMedian()),
    "centred clipping": Recipe(aggregator=CentredClipping(radius=0.3)),
    "norm bound": Recipe(filters=(NormBound(maximum=0.1),)),
    "NNM, trimmed mean": Recipe(filters=(NNM,), aggregator=TrimmedMean(share=0.2)),
    "NNM, median": Recipe(filters=(NNM,), aggregator=Median()),
    "NNM, Krum": Recipe(filters=(NNM, Krum())),
}
AS_IF_AWAY = ("Multi-Krum", "NNM, trimmed mean", "NNM, median", "NNM, Krum")


def tenfold(delta: Array) -> Array:
    return -10 * delta


def toy(spread: float, sites: int = 6) -> Quadratics:
    return Quadratics.drawn(3, sites=sites, spread=spread, hostile={sites - 1: tenfold})


def left(attacked: Quadratics, recipe: Recipe) -> float:
    """What is left of the distance, as a share."""
    optimum = attacked.optimum()
    end = attacked.run(recipe, ROUNDS).w
    return float(np.linalg.norm(end - optimum) / np.linalg.norm(optimum))


def test_the_mean_goes_anywhere() -> None:
    assert left(toy(0.3), Recipe()) > 1e6


@pytest.mark.parametrize("recipe", HOLD.values(), ids=HOLD)
def test_a_robust_rule_holds(recipe: Recipe) -> None:
    assert left(toy(0.3), recipe) <= 0.1


def test_bulyan_holds_with_seven_that_differ_less() -> None:
    """It is Krum again and again, and loses those that differ from most: a good half of what is left of the way at 0.3 is left
    without a hostile site, too."""
    bulyan = Recipe(aggregator=Bulyan())
    attacked = toy(0.3, sites=7)
    assert left(toy(0.2, sites=7), bulyan) <= 0.1 < left(attacked, bulyan)
    assert left(replace(attacked, hostile={}), bulyan) > 0.5 * left(attacked, bulyan)


@pytest.mark.parametrize("name", AS_IF_AWAY)
@pytest.mark.parametrize("spread", [0.3, 1.0])
def test_rules_that_leave_it_out_end_as_if_it_were_away(name: str, spread: float) -> None:
    """However much the honest sites differ: where it is always the farthest, these are the mean of the five others."""
    attacked = toy(spread)
    honest = attacked.only(range(5)).run(Recipe(), ROUNDS).w
    np.testing.assert_allclose(attacked.run(HOLD[name], ROUNDS).w, honest, rtol=0, atol=1e-5)


def test_krum_ends_at_one_site() -> None:
    """It follows one update, so that sites that differ pull it from the optimum of all; the closer they are, the less. No
    attack is needed for that."""
    krum = Recipe(filters=(Krum(),))
    shares = [left(toy(spread), krum) for spread in (0.05, 0.3, 1.0)]
    assert shares[0] <= 0.1 < shares[1] < shares[2]
    attacked = toy(0.3)
    end = attacked.run(krum, ROUNDS).w
    farthest = max(np.linalg.norm(attacked.optima[k] - attacked.optimum()) for k in range(5))
    assert np.linalg.norm(end - attacked.optimum()) <= farthest


def test_nnm_alone_is_no_rule() -> None:
    """Mixed with its neighbours the hostile update still counts one in six of a plain mean: a rule has to follow."""
    alone = Recipe(filters=(NNM,))
    assert 0.1 < left(toy(0.3), alone) < 1.0
    assert left(toy(0.3), HOLD["NNM, trimmed mean"]) < 0.1 * left(toy(0.3), alone)


def test_a_bound_limits_how_far_a_round_can_go() -> None:
    """By the bound, whatever is sent."""
    bound = Recipe(filters=(NormBound(maximum=0.1),))
    attacked = toy(0.3)
    end = attacked.run(bound, 1).w
    honest = attacked.only(range(5)).run(bound, 1).w
    assert np.linalg.norm(end - honest) <= 2 * 0.1 / 6 + 1e-9
