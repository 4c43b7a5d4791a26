"""What an update counts that began from an older model: equation and bounds."""

from __future__ import annotations

import numpy as np
import pytest
from federated import scene

from fedmed_common.config import RecipeChoice
from fedmed_common.errors import ConfigError
from fedmed_strategies.aggregators.holders import Holders
from fedmed_strategies.buffered import Buffered
from fedmed_strategies.filters.norm_bound import NormBound
from fedmed_strategies.pieces import Answer, Layers, Site
from fedmed_strategies.presets import RECIPES
from fedmed_strategies.recipe import Recipe, resolve
from fedmed_strategies.server_half import Round
from fedmed_strategies.server_optimizers.momentum import Momentum
from fedmed_strategies.weights.fixed import Equal

PATIENTS, AGES = (30, 10, 20), (0, 3, 8)


def step(recipe: Recipe, deltas: list[float], presence: tuple[int, ...] = (1, 1, 1)) -> float:
    """By how much one number moves, of sites whose updates are as old as ``AGES``."""
    sites = [
        Site(name=name, patients=count, presence={"a": shows})
        for name, count, shows in zip("xyz", PATIENTS, presence, strict=True)
    ]
    start = {"head": np.zeros((1, 1), np.float32)}
    layers = Layers(trained=("head",), rows={"head": 0})
    done = Round(recipe, scene(sites, start, classes=("a",), layers=layers), start, {})
    for site, delta, age in zip(sites, deltas, AGES, strict=True):
        done.add(Answer(site=site, delta={"head": np.full((1, 1), delta, np.float32)}, staleness=age))
    return float(done.finish()[0]["head"][0, 0])


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        (Recipe(buffered=Buffered()), (30 * 1 + 10 * 2 / 2 + 20 * 4 / 3) / 60),
        (Recipe(buffered=Buffered(exponent=0.0)), (30 * 1 + 10 * 2 + 20 * 4) / 60),
        (Recipe(buffered=Buffered(exponent=1.0)), (30 * 1 + 10 * 2 / 4 + 20 * 4 / 9) / 60),
        (Recipe(buffered=Buffered(), weights=Equal()), (1 + 2 / 2 + 4 / 3) / 3),
        (
            Recipe(buffered=Buffered(), server_optimizer=Momentum(rate=0.5)),
            (30 * 1 + 10 * 2 / 2 + 20 * 4 / 3) / 120,
        ),
        (
            Recipe(buffered=Buffered(), filters=(NormBound(maximum=2.0),)),
            (30 * 1 + 10 * 2 / 2 + 20 * 2 / 3) / 60,
        ),
        (Recipe(buffered=Buffered(), aggregator=Holders(beta=0.0)), (1 + 2 / 2 + 4 / 3) / 3),
        (Recipe(), (30 * 1 + 10 * 2 + 20 * 4) / 60),
    ],
)
def test_a_stale_update_is_shortened_and_the_others_count_as_before(recipe: Recipe, expected: float) -> None:
    """Nguyen et al. 2022, algorithm 1, with s(tau) = (1 + tau)^-exponent."""
    assert step(recipe, [1.0, 2.0, 4.0]) == pytest.approx(expected, rel=1e-6)


def test_an_update_that_is_not_stale_counts_in_full() -> None:
    assert [Buffered(exponent=exponent).freshness(0) for exponent in (0.0, 0.5, 3.0)] == [1.0] * 3


@pytest.mark.parametrize(
    ("settings", "trainers", "sizes"),
    [
        ({}, 7, (4, 7)),
        ({}, 1, (1, 1)),
        ({"concurrency": 4}, 7, (2, 4)),
        ({"concurrency": 9, "buffer": 3}, 7, (3, 7)),
        ({"buffer": 8}, 7, (8, 7)),
    ],
)
def test_sizes_follow_the_number_of_sites(
    settings: dict[str, int], trainers: int, sizes: tuple[int, int]
) -> None:
    assert Buffered(**settings).sizes(trainers) == sizes  # type: ignore[arg-type]


def test_a_buffer_that_can_never_be_full_is_refused_where_it_is_set() -> None:
    choice = RecipeChoice(name="fedbuff", settings={"buffered": {"buffer": 5, "concurrency": 4}})
    with pytest.raises(ConfigError, match=r"buffer \(5\) is more than concurrency \(4\)") as caught:
        resolve(choice, RECIPES)
    assert caught.value.field == "recipe.settings.buffered"


def test_it_adds_up_with_what_sites_do() -> None:
    recipe = RECIPES["fedbuff"] + RECIPES["longtail"] + RECIPES["fedprox"]
    assert recipe.buffered == Buffered()
    assert {piece.name for piece in recipe.corrections} == {"kept_moments", "prox"}
