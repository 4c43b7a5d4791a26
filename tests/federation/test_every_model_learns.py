"""One federated round on synthetic hospitals lowers the loss of every architecture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from architectures import EACH_BUT_MOST_SLOW, experiment

from fedmed_client.data.samplers import build_sampler
from fedmed_client.workbench import SiteHome
from fedmed_common import params
from fedmed_common.config import Experiment
from fedmed_common.models import build_model
from fedmed_common.tasks import build_task
from fedmed_server import history
from fedmed_server.app import RunRequest
from fedmed_server.history import RunEnded
from fedmed_server.state import load_state
from fedmed_simulations.checks import check_experiment
from fedmed_simulations.engines import run_inline
from fedmed_simulations.federation import make_homes
from fedmed_simulations.phantom.settings import PhantomSettings
from fedmed_simulations.phantom.write import write_federation


@pytest.fixture(scope="module")
def hospitals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hospitals")
    settings = PhantomSettings(sites=2, patients=4, shape=(48, 48, 24), seed=3, vacant=0, unannotated=0)
    write_federation(folder / "federation", settings, workers=1)
    return folder


def asked(name: str, dimensions: int, hospitals: Path) -> Experiment:
    """The small form of an architecture, to be trained by the hospitals for one round."""
    whole = experiment(name, dimensions).model_dump(mode="json", exclude_none=True)
    whole["data"]["splits"] = {"validation": 0.0, "test": 0.0}
    whole["data"]["augmentation"] = "none"
    whole["train"] |= {"steps": 8, "batch_size": 2, "learning_rate": 3e-3}
    whole["simulation"] = {"federation": str(hospitals / "federation")}
    if whole["task"]["name"] == "classification":
        whole["task"]["classes"] = ["liver_lesion", "kidney_cyst"]
        whole["train"] |= {"learning_rate": 1e-3}
    return Experiment.model_validate(whole)


def loss(asked: Experiment, homes: list[SiteHome], parameters: params.Parameters) -> float:
    """The mean loss of some fixed batches of each hospital."""
    network, task = build_model(asked), build_task(asked)
    params.to_model(parameters, network)
    losses = []
    with torch.no_grad():
        for home in homes:
            sampler, rng = build_sampler(home.cohort(asked).of("train"), asked), np.random.default_rng(1)
            losses += [float(task.objective(network, *sampler.batch(rng))) for _ in range(3)]
    return float(np.mean(losses))


@pytest.mark.parametrize(("name", "dimensions"), EACH_BUT_MOST_SLOW, ids=str)
def test_a_round_lowers_the_loss(name: str, dimensions: int, hospitals: Path, tmp_path: Path) -> None:
    whole = asked(name, dimensions, hospitals)
    homes = make_homes(whole, check_experiment(whole, tmp_path / "e.toml"), hospitals / "sites")
    run_inline(homes, RunRequest(experiment=whole, folder=tmp_path, command="", sites=len(homes)))
    (ended,) = [record for record in history.read(tmp_path / history.FILE) if isinstance(record, RunEnded)]
    assert ended.status == "completed"
    state = load_state(tmp_path)
    assert state is not None
    assert loss(whole, homes, state.parameters) < loss(whole, homes, params.from_model(build_model(whole)))
