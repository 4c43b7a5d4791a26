"""Whole federations under strategies of Flower's own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from simulated import assert_equal_weights, fedmed, kill_after_round, only_run

from fedmed_client.policy import check_recipe
from fedmed_common.config import Policy
from fedmed_common.errors import PolicyRefusal
from fedmed_common.loading import load_experiment
from fedmed_server.app import RunRequest
from fedmed_server.state import model_file
from fedmed_simulations.checks import check_experiment
from fedmed_simulations.engines import run_inline
from fedmed_simulations.federation import make_homes

SETTINGS = {
    "FedAvg": "",
    "FedAvgM": "settings.FedAvgM.server_momentum = 0.9",
    "FedAdagrad": "settings.FedAdagrad.eta = 0.01",
    "FedAdam": "settings.FedAdam.eta = 0.01",
    "FedYogi": "",
    "FedMedian": "",
    "FedTrimmedAvg": "settings.FedTrimmedAvg.beta = 0.34",
    "FedProx": "settings.FedProx.proximal_mu = 5.0",
    "Krum": "settings.Krum.num_malicious_nodes = 1",
    "MultiKrum": "settings.MultiKrum = { num_malicious_nodes = 1, num_nodes_to_select = 2 }",
    "Bulyan": "settings.Bulyan.num_malicious_nodes = 0",
    "QFedAvg": "settings.QFedAvg.client_learning_rate = 0.01",
    "DifferentialPrivacyServerSideFixedClipping": "[recipe.settings.DifferentialPrivacyServerSideFixedClipping]\n"
    'strategy = "FedAvg"\nnoise_multiplier = 0.0\nclipping_norm = 100.0\nnum_sampled_clients = 3',
    "DifferentialPrivacyServerSideAdaptiveClipping": "[recipe.settings.DifferentialPrivacyServerSideAdaptiveClipping]\n"
    'strategy = "FedAvg"\nnoise_multiplier = 0.1\nnum_sampled_clients = 3\nclipped_count_stddev = 1.0',
}


def recipe(name: str, settings: str = "") -> str:
    """The recipe's table in an experiment."""
    return f'[recipe]\nname = "{name}"\n{settings}\n'


def run(file: Path, folder: Path) -> dict[str, np.ndarray]:
    """The last model of a run that begins anew."""
    experiment = load_experiment(file)
    homes = make_homes(experiment, check_experiment(experiment, file), folder.parent / "sites")
    folder.mkdir(parents=True)
    run_inline(homes, RunRequest(experiment=experiment, folder=folder, command="test", sites=3))
    return load_file(model_file(folder, "last"))


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray], tolerance: float = 1e-6) -> bool:
    return all(np.allclose(a[name], b[name], rtol=0, atol=tolerance) for name in a)


@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_it_runs(write_experiment, tmp_path: Path, name: str) -> None:
    file = write_experiment(rounds=2, extra=recipe(f"flwr.{name}", SETTINGS[name]))
    model = run(file, tmp_path / "runs" / name)
    assert all(np.isfinite(array).all() for array in model.values())


def test_flowers_fedavg_is_ours_and_its_proximal_term_is_ours(write_experiment, tmp_path: Path) -> None:
    def last(name: str, settings: str = "") -> dict[str, np.ndarray]:
        file = write_experiment(rounds=1, steps=4, extra=recipe(name, settings))
        return run(file, tmp_path / "runs" / name)

    ours, prox = last("fedavg"), last("fedprox", "settings.prox.mu = 5.0")
    assert not same(ours, prox, 1e-4)
    assert same(ours, last("flwr.FedAvg"))
    assert same(prox, last("flwr.FedProx", SETTINGS["FedProx"]))


@pytest.mark.parametrize("name", ["FedAdam", "FedAvgM"])
def test_a_killed_run_ends_as_an_uninterrupted_one(write_experiment, tmp_path: Path, name: str) -> None:
    file = write_experiment(rounds=6, steps=4, extra=recipe(f"flwr.{name}", SETTINGS[name]))
    fedmed("simulate", file, "--runs", tmp_path / "whole")
    killed = kill_after_round(file, tmp_path / "killed", rounds=2)
    fedmed("resume", killed)
    assert_equal_weights(only_run(tmp_path / "whole"), killed)


def test_a_wrong_setting_is_said_before_anything_is_written(write_experiment, tmp_path: Path) -> None:
    file = write_experiment(extra=recipe("flwr.FedAdam", "settings.FedAdam.etta = 0.01"))
    done = fedmed("simulate", file, "--runs", tmp_path / "runs", check=False)
    assert done.returncode != 0
    assert "recipe.settings.FedAdam" in done.stdout + done.stderr
    assert "did you mean 'eta'?" in done.stdout + done.stderr
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").glob("*/history.jsonl"))


def test_a_site_may_refuse_it_by_name(write_experiment) -> None:
    choice = load_experiment(write_experiment(extra=recipe("flwr.FedAdam"))).recipe
    check_recipe(Policy(recipes=("fedavg", "flwr.FedAdam")), choice)
    with pytest.raises(PolicyRefusal, match=r"flwr\.FedAdam"):
        check_recipe(Policy(recipes=("fedavg", "fedadam")), choice)
