"""Strategies of Flower's own in our rounds: the same numbers, kept between rounds, and refused with a reason."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from federated import scene
from flowers import Updates, flower, played
from flwr.serverapp import strategy as strategies

from fedmed_common.config import RecipeChoice
from fedmed_common.errors import ConfigError, QuorumError
from fedmed_common.params import Parameters
from fedmed_server.flower_strategies import FlowerRound, check
from fedmed_server.state import RunState, load_state, save_state
from fedmed_strategies.corrections.prox import Prox
from fedmed_strategies.pieces import Answer, Site
from fedmed_strategies.presets import RECIPES, plain_of
from fedmed_strategies.recipe import Recipe, resolve

__all__ = ["flower"]

PLAYED: dict[str, dict[str, Any]] = {
    "FedAvg": {},
    "FedAvgM": {"server_momentum": 0.9, "server_learning_rate": 0.5},
    "FedAdagrad": {"eta": 0.05},
    "FedAdam": {"eta": 0.02},
    "FedYogi": {},
    "FedMedian": {},
    "FedTrimmedAvg": {"beta": 0.15},
    "FedProx": {"proximal_mu": 0.1},
    "Krum": {"num_malicious_nodes": 1},
    "MultiKrum": {"num_malicious_nodes": 1, "num_nodes_to_select": 4},
    "Bulyan": {"num_malicious_nodes": 1},
    "QFedAvg": {"client_learning_rate": 0.1, "q": 0.5},
}
REFUSED = {
    "FedXgbBagging",
    "FedXgbCyclic",
    "DifferentialPrivacyClientSideAdaptiveClipping",
    "DifferentialPrivacyClientSideFixedClipping",
}
WRAPPERS: dict[str, dict[str, Any]] = {
    "DifferentialPrivacyServerSideFixedClipping": {"clipping_norm": 0.3},
    "DifferentialPrivacyServerSideAdaptiveClipping": {"initial_clipping_norm": 0.3},
}
START: Parameters = {
    "conv.weight": np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4),
    "conv.bias": np.array([0.5, -0.5, 2.0], np.float32),
}
LOSSES = {f"site-{number}": 0.2 + 0.1 * number for number in range(7)}


def updates_of(seed: int, sites: int = 7) -> Updates:
    """Of one round."""
    rng = np.random.default_rng(seed)
    return {
        f"site-{number}": (
            5 + 3 * number,
            {name: rng.normal(0, 0.1, array.shape).astype(np.float32) for name, array in START.items()},
        )
        for number in range(sites)
    }


ROUNDS = [updates_of(seed) for seed in range(4)]


def recipe_of(name: str, **settings: dict[str, Any]) -> Recipe:
    return resolve(RecipeChoice(name=f"flwr.{name}", settings=settings), RECIPES)


def through_checkpoints(
    folder: Path,
    recipe: Recipe,
    rounds: Sequence[Updates],
    losses: dict[str, float] | None = LOSSES,
    start: Parameters = START,
) -> list[Parameters]:
    """Rounds of ours, each from the checkpoint file of the one before."""
    save_state(folder, RunState(round=0, parameters=start))
    results = []
    for number, updates in enumerate(rounds, 1):
        state = load_state(folder)
        assert state is not None
        sites = [Site(name=name, patients=patients) for name, (patients, _) in updates.items()]
        about = scene(sites, start, round=number, rounds=len(rounds))
        collecting = FlowerRound(recipe, about, state.parameters, state.memory)
        for site in sites:
            loss = None if losses is None else losses[site.name]
            collecting.add(Answer(site=site, delta=updates[site.name][1], loss=loss))
        parameters, memory = collecting.finish()
        save_state(folder, RunState(round=number, parameters=parameters, memory=memory))
        results.append(parameters)
    return results


def assert_same(ours: Sequence[Parameters], theirs: Sequence[Parameters]) -> None:
    for mine, other in zip(ours, theirs, strict=True):
        for name in START:
            assert mine[name].dtype == np.float32
            np.testing.assert_array_equal(mine[name], other[name])


def test_every_strategy_of_flower_is_played_or_refused() -> None:
    known = set(strategies.__all__) - {"Result", "Strategy"}
    assert known == {*PLAYED, *WRAPPERS, *REFUSED}


@pytest.mark.parametrize("name", sorted(PLAYED))
def test_rounds_from_checkpoints_are_those_of_a_strategy_that_lives_on(
    flower: None, tmp_path: Path, name: str
) -> None:
    recipe = recipe_of(name, **{name: PLAYED[name]})
    check(recipe)
    theirs = played(getattr(strategies, name)(**PLAYED[name]), START, ROUNDS, LOSSES)
    assert_same(through_checkpoints(tmp_path, recipe, ROUNDS), theirs)


@pytest.mark.parametrize("name", sorted(WRAPPERS))
@pytest.mark.parametrize("inner", ["FedAvg", "FedAvgM", "FedYogi"])
def test_one_that_wraps_another(flower: None, tmp_path: Path, name: str, inner: str) -> None:
    numbers = WRAPPERS[name] | {"noise_multiplier": 0.0, "num_sampled_clients": 7}
    within = {} if inner == "FedAvg" else PLAYED[inner]
    recipe = recipe_of(name, **{name: {"strategy": inner, **numbers}, inner: within})
    alive = getattr(strategies, name)(getattr(strategies, inner)(**within), **numbers)
    assert_same(through_checkpoints(tmp_path, recipe, ROUNDS), played(alive, START, ROUNDS, LOSSES))
    kept = load_state(tmp_path)
    assert kept is not None
    adaptive = "flower/clipping_norm:float/" in kept.memory
    assert adaptive == ("Adaptive" in name)


def test_its_noise_is_not_that_of_a_seed_that_somebody_knows(flower: None, tmp_path: Path) -> None:
    numbers = {"clipping_norm": 0.3, "noise_multiplier": 1.0, "num_sampled_clients": 7}
    name = "DifferentialPrivacyServerSideFixedClipping"
    recipe = recipe_of(name, **{name: {"strategy": "FedAvg", **numbers}})
    found, left = [], []
    for _ in range(2):
        np.random.seed(1)
        found += through_checkpoints(tmp_path, recipe, ROUNDS[:1])
        left.append(np.random.random())
    assert not np.array_equal(found[0]["conv.weight"], found[1]["conv.weight"])
    assert left[0] == left[1]


def test_without_what_was_kept_the_rounds_would_be_others(flower: None, tmp_path: Path) -> None:
    recipe = recipe_of("FedAdam", FedAdam={"eta": 0.02})
    whole = through_checkpoints(tmp_path, recipe, ROUNDS)
    state = load_state(tmp_path)
    assert state is not None
    assert {name.split("/")[1] for name in state.memory} == {"m_t:dict", "v_t:dict"}
    one = through_checkpoints(tmp_path, recipe, ROUNDS[1:2], start=whole[0])
    assert not np.array_equal(one[0]["conv.bias"], whole[1]["conv.bias"])


@pytest.mark.parametrize(("name", "robust"), [("FedAdam", False), ("FedMedian", True)])
def test_running_statistics_do_not_pass_through_it(
    flower: None, tmp_path: Path, name: str, robust: bool
) -> None:
    start = START | {"norm.running_var": np.ones(2, np.float32), "norm.running_mean": np.zeros(2, np.float32)}
    values = {f"site-{n}": np.full(2, v, np.float32) for n, v in enumerate((-0.5, -0.4, 8.0))}
    updates = {
        site: (10, {**delta, "norm.running_var": values[site], "norm.running_mean": np.zeros(2, np.float32)})
        for site, (_, delta) in updates_of(0, sites=3).items()
    }
    (done,) = through_checkpoints(tmp_path, recipe_of(name), [updates], start=start)
    expected = 0.6 if robust else 1 + (8.0 - 0.9) / 3
    np.testing.assert_allclose(done["norm.running_var"], expected, rtol=1e-6)
    assert list(done) == list(start)


def test_the_proximal_term_works_at_the_sites() -> None:
    recipe = recipe_of("FedProx", FedProx={"proximal_mu": 0.3})
    assert recipe.corrections == (Prox(mu=0.3),)
    assert recipe_of("FedProx").corrections == ()


def test_two_proximal_terms_that_differ_are_refused(flower: None, tmp_path: Path) -> None:
    recipe = recipe_of("FedProx", FedProx={"proximal_mu": 0.3}, prox={"mu": 0.1})
    with pytest.raises(ConfigError, match=r"draws sites back by 0.3, and 'prox' by 0.1"):
        through_checkpoints(tmp_path, recipe, ROUNDS[:1])


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_cannot_work_here_is_refused(name: str) -> None:
    with pytest.raises(
        ConfigError, match=f"'flwr.{name}' cannot work here: its|'flwr.{name}' cannot work here: it "
    ):
        check(recipe_of(name))


@pytest.mark.parametrize(
    ("name", "settings", "problem", "place", "fix"),
    [
        ("FedAdan", {}, "unknown name 'FedAdan'", "recipe.name", "did you mean 'FedAdam'?"),
        ("FedAdam", {"FedAdam": {"etta": 1.0}}, "unknown name 'etta'", "recipe.settings.FedAdam", "did you mean 'eta'?"),
        ("FedAdam", {"FedAdam": {"eta": "big"}}, "'big' is no float", "recipe.settings.FedAdam.eta", "change its type"),
        ("FedAdam", {"FedAdam": {"eta": True}}, "True is no float", "recipe.settings.FedAdam.eta", "change its type"),
        ("Krum", {"Krum": {"num_malicious_nodes": 0.5}}, "0.5 is no int", "recipe.settings.Krum.num_malicious_nodes", ""),
        ("FedAvg", {"FedAvg": {"fraction_train": 0.5}}, "'fraction_train' is not the experiment's to say", "", "federation"),
        ("FedAvg", {"FedAvg": {"weighted_by_key": "x"}}, "'weighted_by_key' is not", "", "leave it out"),
        ("QFedAvg", {}, "'flwr.QFedAvg' needs 'client_learning_rate'", "recipe.settings.QFedAvg", "set recipe.settings"),
        ("FedTrimmedAvg", {"FedTrimmedAvg": {"beta": 0.7}}, r"\[0, 0.5\)", "recipe.settings.FedTrimmedAvg", "change"),
        ("DifferentialPrivacyServerSideFixedClipping", {}, "needs 'clipping_norm'", "", "set recipe.settings"),
    ],
)  # fmt: skip
def test_settings_are_held_against_the_constructor(
    name: str, settings: dict[str, Any], problem: str, place: str, fix: str
) -> None:
    with pytest.raises(ConfigError, match=problem) as caught:
        check(recipe_of(name, **settings))
    assert place in (caught.value.field or "")
    assert fix in (caught.value.fix or "")


@pytest.mark.parametrize("also", ["scaffold", "fedavgm", "median", "norm_bound", "qffl", "central_privacy"])
def test_what_the_server_does_otherwise_does_not_go_with_it(also: str) -> None:
    with pytest.raises(ConfigError, match=r"cannot be in it|are both for its"):
        resolve(RecipeChoice(name="flwr.FedAdam", also=(also,)), RECIPES)


@pytest.mark.parametrize("also", ["rare", "fedbn", "fedprox", "logit_adjustment", "operating_point"])
def test_what_works_at_sites_does(also: str) -> None:
    recipe = resolve(RecipeChoice(name="flwr.FedAdam", also=(also,)), RECIPES)
    check(recipe)
    assert plain_of(RecipeChoice(name="flwr.FedAdam", also=(also,))).name == "fedavg"


def test_too_few_answers_are_said_as_such(flower: None, tmp_path: Path) -> None:
    recipe = recipe_of("Bulyan", Bulyan={"num_malicious_nodes": 1})
    with pytest.raises(QuorumError, match=r"'flwr.Bulyan' made nothing of 6 answers"):
        through_checkpoints(tmp_path, recipe, [updates_of(0, sites=6)])
    recipe = recipe_of("QFedAvg", QFedAvg={"client_learning_rate": 0.1})
    with pytest.raises(QuorumError, match="Missing or invalid training loss"):
        through_checkpoints(tmp_path, recipe, ROUNDS[:1], losses=None)
