"""Flower's own numbers, and where they are not the paper's: then what is shown is the difference, and why."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from federated import scene
from flowers import Updates, flower, played
from flwr.serverapp import strategy as theirs
from flwr.supercore.differential_privacy import compute_stdv

from fedmed_common.params import Parameters, norm
from fedmed_strategies.aggregators.bulyan import Bulyan
from fedmed_strategies.aggregators.coordinates import Median, TrimmedMean
from fedmed_strategies.central_privacy import CentralPrivacy
from fedmed_strategies.filters.distances import squared_distances
from fedmed_strategies.filters.krum import Krum, MultiKrum
from fedmed_strategies.pieces import Answer, Memory, Site
from fedmed_strategies.presets import RECIPES
from fedmed_strategies.recipe import Recipe
from fedmed_strategies.server_half import Round
from fedmed_strategies.server_optimizers.adaptive import Adagrad, Adam, Yogi
from fedmed_strategies.server_optimizers.momentum import Momentum
from fedmed_strategies.weights.fair import Fair

__all__ = ["flower"]

SITES = 7
LOSSES = {f"s{number}": 0.2 + 0.15 * number for number in range(SITES)}
START: Parameters = {
    "weight": np.linspace(0.5, 1.5, 12, dtype=np.float32).reshape(3, 4),
    "bias": np.array([0.6, -0.7, 2.0], np.float32),
}


def updates_of(seed: int, scale: float = 0.1) -> Updates:
    rng = np.random.default_rng(seed)
    return {
        f"s{number}": (
            5 + 3 * number,
            {name: rng.normal(0, scale, array.shape).astype(np.float32) for name, array in START.items()},
        )
        for number in range(SITES)
    }


ROUNDS = [updates_of(seed) for seed in range(5)]


def ours(
    recipe: Recipe | Callable[[int], Recipe],
    rounds: Sequence[Updates] = ROUNDS,
    losses: Mapping[str, float] = LOSSES,
    start: Parameters = START,
) -> tuple[list[Parameters], Memory]:
    """What a recipe makes of each round; it may be another one in each."""
    at, memory, results = start, Memory(), []
    for number, updates in enumerate(rounds, 1):
        sites = [Site(name=name, patients=patients) for name, (patients, _) in updates.items()]
        now = recipe(number) if callable(recipe) else recipe
        done = Round(now, scene(sites, start, round=number, rounds=len(rounds)), at, memory)
        for site in sites:
            told = {"start_loss": losses[site.name]}
            done.add(Answer(site=site, delta=updates[site.name][1], scalars=told))
        at, memory = done.finish()
        results.append(at)
    return results, memory


def farthest(a: Sequence[Parameters], b: Sequence[Parameters]) -> float:
    """The largest relative difference of any number in any round."""
    return max(
        float(np.max(np.abs(x[name] - y[name]) / np.abs(y[name])))
        for x, y in zip(a, b, strict=True)
        for name in START
    )


SAME: dict[str, tuple[Recipe, Any]] = {
    "FedAvg": (Recipe(), {}),
    "FedProx": (RECIPES["fedprox"], {"proximal_mu": 0.01}),
    "FedAvgM": (
        Recipe(server_optimizer=Momentum(rate=0.5, momentum=0.9)),
        {"server_learning_rate": 0.5, "server_momentum": 0.9},
    ),
    "FedAdagrad": (Recipe(server_optimizer=Adagrad(rate=0.02, initial=0.0)), {"eta": 0.02}),
    "FedYogi": (Recipe(server_optimizer=Yogi(rate=0.02, initial=0.0)), {"eta": 0.02}),
    "FedMedian": (Recipe(aggregator=Median()), {}),
    "FedTrimmedAvg": (Recipe(aggregator=TrimmedMean(share=0.2)), {"beta": 0.2}),
    "Krum": (Recipe(filters=(Krum(hostile=1),)), {"num_malicious_nodes": 1}),
    "MultiKrum": (
        Recipe(filters=(MultiKrum(hostile=1, kept=4),)),
        {"num_malicious_nodes": 1, "num_nodes_to_select": 4},
    ),
    "QFedAvg": (Recipe(weights=Fair(q=0.7)), {"q": 0.7, "client_learning_rate": 0.1}),
}


@pytest.mark.parametrize("name", sorted(SAME))
def test_the_same_numbers_over_five_rounds(flower: None, name: str) -> None:
    recipe, settings = SAME[name]
    assert farthest(ours(recipe)[0], played(getattr(theirs, name)(**settings), START, ROUNDS, LOSSES)) <= 1e-5


def test_a_start_of_v_as_in_the_paper_is_another(flower: None) -> None:
    """Algorithm 2 of Reddi et al. has v at least tau^2; Flower's begins at 0."""
    mine = ours(Recipe(server_optimizer=Yogi(rate=0.02, tau=0.1)))[0]
    assert farthest(mine, played(theirs.FedYogi(eta=0.02, tau=0.1), START, ROUNDS)) > 1e-3


def test_fixed_clipping_without_noise(flower: None) -> None:
    lengths = [norm(delta) for _, delta in ROUNDS[0].values()]
    length = sorted(lengths)[3]
    strategy = theirs.DifferentialPrivacyServerSideFixedClipping(theirs.FedAvg(), 0.0, length, SITES)
    mine = ours(Recipe(central_privacy=CentralPrivacy(clipping_norm=length, noise_multiplier=0.0)))[0]
    assert farthest(mine, played(strategy, START, ROUNDS)) <= 1e-5
    assert farthest(mine, ours(Recipe())[0]) > 1e-3


def test_fedadam_of_flower_is_the_papers_with_a_rate_that_changes(flower: None) -> None:
    """Algorithm 2 of Reddi et al. has no correction of bias. Kingma and Ba's would have the exponent t in round t; Flower's has
    t + 1, so that its first step is 0.74 of theirs."""
    eta, beta_1, beta_2 = 0.02, 0.9, 0.99

    def at(exponent: int) -> float:
        return eta * math.sqrt(1 - beta_2**exponent) / (1 - beta_1**exponent)

    def rated(after: int) -> list[Parameters]:
        adam = {"beta_1": beta_1, "beta_2": beta_2, "initial": 0.0}
        return ours(lambda t: Recipe(server_optimizer=Adam(rate=at(t + after), **adam)))[0]

    flowers = played(theirs.FedAdam(eta=eta), START, ROUNDS)
    assert farthest(rated(1), flowers) <= 1e-5
    assert farthest(rated(0), flowers) > 1e-3
    assert farthest(ours(Recipe(server_optimizer=Adam(rate=eta, initial=0.0)))[0], flowers) > 1e-3
    assert at(2) / at(1) == pytest.approx(0.7424, abs=1e-4)


def test_flower_trims_one_less_where_a_share_has_no_exact_number(flower: None) -> None:
    """0.29 x 100 is 28.999999999999996 to a computer; 29 are meant."""
    values = np.arange(100, dtype=np.float32) ** 2
    updates = {f"s{n}": (1, {"w": np.array([value])}) for n, value in enumerate(values)}
    start = {"w": np.zeros(1, np.float32)}
    (theirs_,) = played(theirs.FedTrimmedAvg(beta=0.29), start, [updates])
    (mine,), _ = ours(
        Recipe(aggregator=TrimmedMean(share=0.29)), [updates], dict.fromkeys(updates, 0.0), start
    )
    assert theirs_["w"][0] == pytest.approx(values[28:72].mean(), rel=1e-6)
    assert mine["w"][0] == pytest.approx(values[29:71].mean(), rel=1e-6)


def test_krum_of_flower_loses_small_updates_in_large_parameters(flower: None) -> None:
    """It takes distances of parameters by |x|^2 + |y|^2 - 2 xy in single precision; ours are those of the updates."""
    start = {name: array + np.float32(300.0) for name, array in START.items()}
    rounds = [updates_of(seed, scale=1e-3) for seed in range(12)]
    chosen = {"ours": 0, "flower": 0}
    for updates in rounds:
        deltas = [delta for _, delta in updates.values()]
        best = deltas[_krum_by_hand(deltas, hostile=1)]
        (mine,), _ = ours(Recipe(filters=(Krum(hostile=1),)), [updates], start=start)
        (flowers,) = played(theirs.Krum(num_malicious_nodes=1), start, [updates])
        for who, model in (("ours", mine), ("flower", flowers)):
            chosen[who] += all(np.array_equal(model[name], start[name] + best[name]) for name in START)
    assert chosen["ours"] == 12
    assert chosen["flower"] < 9


def _krum_by_hand(deltas: Sequence[Parameters], hostile: int) -> int:
    """Blanchard et al. 2017, section 4: the sum over the n - f - 2 nearest others."""
    flat = np.stack([np.concatenate([a.ravel() for a in d.values()]) for d in deltas]).astype(np.float64)
    scores = []
    for k, own in enumerate(flat):
        others = sorted(float(np.sum((own - other) ** 2)) for j, other in enumerate(flat) if j != k)
        scores.append(sum(others[: len(flat) - hostile - 2]))
    return int(np.argmin(scores))


def test_bulyan_of_flower_chooses_once_where_the_paper_chooses_again_and_again(flower: None) -> None:
    """El Mhamdi et al. 2018, section 4: Krum, without the one chosen, until n - 2 f are chosen. What follows is the same."""
    same, other = 0, 0
    for seed in range(12):
        updates = updates_of(seed)
        deltas = [delta for _, delta in updates.values()]
        squares = squared_distances(deltas)
        once = [int(place) for place in np.argsort([np.sort(row)[1:5].sum() for row in squares])[:5]]
        (flowers,) = played(theirs.Bulyan(num_malicious_nodes=1), START, [updates])
        (mine,), _ = ours(Recipe(aggregator=Bulyan(hostile=1)), [updates])
        if set(once) == set(_again_and_again(squares)):
            same += 1
            assert farthest([mine], [flowers]) <= 1e-5
        else:
            other += 1
            assert farthest([mine], [flowers]) > 1e-3
    assert same > 0
    assert other > 0


def _again_and_again(squares: np.ndarray) -> list[int]:
    """Of seven the five that Krum chooses against one; of two that are each other's one nearest, that nearer to all."""
    left, chosen = list(range(7)), list[int]()
    while len(chosen) < 5:
        others = {k: sorted(squares[k, j] for j in left if j != k) for k in left}
        nearest = max(1, len(left) - 1 - 2)
        best = min(left, key=lambda k: (sum(others[k][:nearest]), sum(others[k])))
        left.remove(best)
        chosen.append(best)
    return chosen


def test_adaptive_clipping_of_flower_moves_the_wrong_way(flower: None) -> None:
    """Andrew et al. 2021, equation 2: b is the share of updates no longer than C. Flower's is that of longer ones, so that a C
    that clips all of them falls, and one that clips none grows."""
    rounds = [updates_of(seed) for seed in range(6)]
    for begins, should_grow in ((0.01, True), (100.0, False)):
        strategy = theirs.DifferentialPrivacyServerSideAdaptiveClipping(
            theirs.FedAvg(), 0.0, SITES, initial_clipping_norm=begins
        )
        played(strategy, START, rounds)
        adapting = CentralPrivacy(clipping_norm=begins, noise_multiplier=0.0, adapts=0.2, noise_of_shares=0.0)
        kept = ours(Recipe(central_privacy=adapting), rounds)[1]
        assert (kept["central_privacy/clipping_norm"] > begins) == should_grow
        assert (strategy.clipping_norm > begins) != should_grow


def test_noise_of_flower_is_too_little_where_sites_weigh_unequally() -> None:
    """One site moves the mean by C times its share, here two thirds; Flower's noise is for one of six alike."""
    patients = [500, 50, 50, 50, 50, 50]
    share = max(patients) / sum(patients)
    assert compute_stdv(1.0, 1.0, len(patients)) == pytest.approx(1 / 6)
    assert share / compute_stdv(1.0, 1.0, len(patients)) == pytest.approx(4.0)
