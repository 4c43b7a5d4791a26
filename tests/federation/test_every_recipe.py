"""Every recipe carries a small federation to its end, and goes on from a checkpoint as if it had not stopped."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fedmed_common.config import Experiment
from fedmed_common.errors import Interrupted
from fedmed_common.loading import load_experiment
from fedmed_server import history
from fedmed_server.app import RunRequest
from fedmed_server.history import RoundDone, RunEnded
from fedmed_server.state import RunState, decision_of, load_state, model_file
from fedmed_simulations.checks import check_experiment
from fedmed_simulations.engines import run_inline
from fedmed_simulations.federation import make_homes
from fedmed_strategies.presets import RECIPES, recipe_of

Ask = Callable[..., Experiment]
_SGD = {"optimizer": "sgd", "momentum": 0.0, "learning_rate": 0.05}
_TRAINING = {"scaffold": _SGD, "qffl": _SGD, "fednova": {"epochs": 1.5}}
_LOCAL = ("fedbn", "silobn", "fedper", "fedrep", "ditto", "mr_mtl")
_STATEFUL = (
    "fedavgm",
    "fedyogi",
    "scaffold",
    "feddyn",
    "kept_moments",
    "feddg_ga",
    "fedce",
    "fedpid",
    "centred_clipping",
    "fedbuff",
    *_LOCAL,
)


@pytest.fixture
def ask(write_experiment: Callable[..., Path]) -> Ask:
    def experiment(name: str, rounds: int = 3) -> Experiment:
        sites = 7 if name == "bulyan" else 5 if "krum" in name else 3
        file = write_experiment(rounds=rounds, sites=sites)
        whole = load_experiment(file).model_dump(mode="json", exclude_none=True)
        whole["recipe"] = {"name": name}
        training = _TRAINING.get(name, {})
        if "epochs" in training:
            del whole["train"]["steps"]
        whole["train"] |= training
        whole["model"] = {
            "name": "unet_2015",
            "channels": [4, 8],
            "norm": "batch" if name == "silobn" else "instance",
        }
        return Experiment.model_validate(whole)

    return experiment


def run(experiment: Experiment, folder: Path, stop_after: int | None = None) -> RunState:
    """Carry it out, or on; the state that it leaves. ``stop_after``: a round after which it is interrupted."""
    homes = make_homes(
        experiment, check_experiment(experiment, folder / "e.toml"), folder.parent / f"{folder.name}-sites"
    )
    folder.mkdir(parents=True, exist_ok=True)
    stop = threading.Event()

    def on_state(state: RunState) -> None:
        if state.round == stop_after:
            stop.set()

    request = RunRequest(
        experiment=experiment, folder=folder, command="test", sites=len(homes), on_state=on_state, stop=stop
    )
    if stop_after is None:
        run_inline(homes, request)
    else:
        with pytest.raises(Interrupted):
            run_inline(homes, request)
    state = load_state(folder)
    assert state is not None
    return state


def ended(folder: Path) -> RunEnded:
    *_, last = history.read(folder / history.FILE)
    assert isinstance(last, RunEnded)
    return last


@pytest.mark.parametrize("name", [name for name in RECIPES if name != "survey"])
def test_a_recipe_carries_a_federation_to_its_end(name: str, ask: Ask, tmp_path: Path) -> None:
    experiment = ask(name)
    state = run(experiment, tmp_path / "run")
    assert ended(tmp_path / "run").status == "completed"
    assert all(np.isfinite(array).all() for array in state.model.values())
    rounds = [
        record for record in history.read(tmp_path / "run" / history.FILE) if isinstance(record, RoundDone)
    ]
    of_a_step = recipe_of(experiment).buffered
    for record in rounds:
        trained = len(record.evaluation)
        assert len(record.train) == (trained if of_a_step is None else of_a_step.sizes(trained)[0])
    moved = [name for name in rounds and state.parameters if np.any(state.parameters[name])]
    assert moved


@pytest.mark.parametrize("name", _STATEFUL)
def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(name: str, ask: Ask, tmp_path: Path) -> None:
    experiment = ask(name, rounds=4)
    whole = run(experiment, tmp_path / "whole" / "run")
    run(experiment, tmp_path / "parts" / "run", stop_after=2)
    parts = run(experiment, tmp_path / "parts" / "run")
    for one, other in ((whole.parameters, parts.parameters), (whole.memory, parts.memory)):
        assert list(one) == list(other)
        for key in one:
            np.testing.assert_array_equal(one[key], other[key], err_msg=key)
    first, second = (ended(tmp_path / part / "run").test["last"] for part in ("whole", "parts"))
    assert [result.metrics for result in first] == [result.metrics for result in second]


@pytest.mark.parametrize("name", _LOCAL)
def test_what_stays_at_the_sites_is_not_sent_and_differs_between_them(
    name: str, ask: Ask, tmp_path: Path
) -> None:
    experiment = ask(name)
    folder = tmp_path / "run"
    run(experiment, folder)
    kept = sorted((tmp_path / "run-sites").glob("*/personal/*/000000003.safetensors"))
    assert len(kept) == 3
    personal = recipe_of(experiment).personal
    assert personal is not None
    assert len({path.read_bytes() for path in kept}) == 3


def test_the_best_round_is_one_whose_stages_were_applied_and_the_file_says_what_they_chose(
    ask: Ask, tmp_path: Path
) -> None:
    experiment = ask("operating_point", rounds=5)
    state = run(experiment, tmp_path / "run")
    assert state.best_round in {4, 5}
    assert state.released is not None
    assert set(state.decision) == set(state.best_decision) == {"least_mm3"}
    for name, decision in (("last", state.decision), ("best", state.best_decision)):
        (said,) = decision_of(model_file(tmp_path / "run", name)).values()
        np.testing.assert_array_equal(said, decision["least_mm3"])
    bias = next(name for name in state.parameters if name.startswith("head") and name.endswith("bias"))
    assert {name for name in state.parameters if np.any(state.model[name] != state.parameters[name])} <= {
        bias
    }
