"""Sites in worker processes give what sites in one process give, bit for bit, also when workers are killed at work."""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from simulated import assert_equal_weights, workers_of

from fedmed_client.workbench import SiteHome
from fedmed_common.config import Experiment
from fedmed_common.failpoints import VARIABLE
from fedmed_common.loading import load_experiment
from fedmed_server import history
from fedmed_server.app import RunRequest, run_federation
from fedmed_simulations.checks import check_experiment
from fedmed_simulations.engines import process_grid, run_inline
from fedmed_simulations.federation import make_homes
from fedmed_simulations.resources import Resources
from fedmed_simulations.workers.grid import WorkersGrid

from .conftest import experiment_writer

SITES = 4
_OWN = {"time", "seconds", "run_id"}
EXPERIMENTS: dict[str, dict[str, Any]] = {
    "fedavg": {},
    "scaffold with batch norms": {
        "recipe": {"name": "scaffold"},
        "model": {"name": "unet_2015", "channels": [4, 8], "norm": "batch"},
        "train": {"optimizer": "sgd", "momentum": 0.0, "learning_rate": 0.05, "steps": 2, "threads": 1},
    },
    "fedper, by epochs": {
        "recipe": {"name": "fedper"},
        "train": {"epochs": 1.0, "batch_size": 2, "threads": 1},
    },
    "secure sums": {"secure_aggregation": {}},
}


@dataclass
class Federation:
    """Sites, and workers for them that stay over all runs. ``told``: the steps that were shown."""

    folder: Path
    experiment: Experiment
    homes: list[SiteHome]
    grid: WorkersGrid | None = None
    told: set[tuple[str, int]] = field(default_factory=set)

    def variant(self, name: str) -> Experiment:
        document = self.experiment.model_dump(mode="json", exclude_none=True) | EXPERIMENTS[name]
        return Experiment.model_validate(document)

    def request(self, experiment: Experiment, name: str) -> RunRequest:
        folder = self.folder / name
        folder.mkdir()
        return RunRequest(experiment=experiment, folder=folder, command="test", sites=SITES)

    def plan(self, *faults: dict[str, object]) -> None:
        """What befalls the workers from now on; none of it happens twice."""
        document = {"faults": faults, "fired": str(self.folder / "fired")}
        (self.folder / "plan.json").write_text(json.dumps(document))


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    folder = tmp_path_factory.mktemp("federation")
    file = experiment_writer(folder)(rounds=2, sites=SITES)
    experiment = load_experiment(file)
    found = Federation(folder, experiment, make_homes(experiment, check_experiment(experiment, file), folder))
    watched = [replace(home, on_step=lambda site, step: found.told.add((site, step))) for home in found.homes]
    (folder / "fired").mkdir()
    found.plan()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, str(folder / "plan.json"))
        request = RunRequest(experiment=experiment, folder=folder, command="test", sites=SITES)
        with process_grid(watched, request, Resources(workers=2)) as found.grid:
            yield found
    assert workers_of(os.getpid()) == [], "a worker was left behind"
    assert open_memory() == 0


def open_memory() -> int:
    """How many pieces of shared memory this process has open or mapped."""
    gc.collect()
    links = [link for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    return sum("memfd:fedmed" in str(link.readlink()) for link in links)


def told(folder: Path) -> list[dict[str, Any]]:
    """A run's history, but for the clock and the run's name."""

    def timeless(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: timeless(one) for name, one in value.items() if name not in _OWN}
        return [timeless(one) for one in value] if isinstance(value, list | tuple) else value

    return [timeless(record.model_dump(mode="json")) for record in history.read(folder / history.FILE)]


def assert_same_run(federation: Federation, name: str, run: str, *faults: dict[str, object]) -> None:
    """Carry it out in one process and in the workers: weights, metrics and all else that is written down is equal.

    ``faults``: what befalls the workers.
    """
    experiment = federation.variant(name)
    one = federation.request(experiment, f"{run}, inline")
    many = federation.request(experiment, f"{run}, workers")
    run_inline(federation.homes, one)
    federation.plan(*faults)
    assert federation.grid is not None
    ended = run_federation(federation.grid, many)
    assert ended.status == "completed"
    assert_equal_weights(one.folder, many.folder)
    assert told(one.folder) == told(many.folder)
    assert open_memory() == 0, "a reply, or a round's parameters, are still held"


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_workers_give_the_weights_and_the_history_of_one_process(federation: Federation, name: str) -> None:
    assert_same_run(federation, name, name)
    assert len(workers_of(os.getpid())) == 2


def test_a_worker_killed_mid_round_is_replaced_and_nothing_else_changes(federation: Federation) -> None:
    before = set(workers_of(os.getpid()))
    assert_same_run(
        federation,
        "scaffold with batch norms",
        "killed",
        {"id": "one", "point": "training", "signal": "SIGKILL", "round": 2, "site": "site-2"},
    )
    assert (federation.folder / "fired" / "one").exists()
    assert len(before - set(workers_of(os.getpid()))) == 1


def test_the_display_hears_of_steps(federation: Federation) -> None:
    assert {site for site, _ in federation.told} <= {f"site-{number}" for number in range(SITES)}
    assert federation.told
