"""One consortium of two hospitals, in real processes on loopback, for all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from fedmed_common.config import Compression
from fedmed_common.loading import load_experiment
from fedmed_simulations.phantom.plan import plan_federation
from fedmed_simulations.phantom.settings import PhantomSettings
from fedmed_simulations.phantom.write import write_federation
from fedmed_simulations.rehearsal.consortium import Consortium, write_experiment
from fedmed_simulations.rehearsal.faults import Faults
from fedmed_simulations.rehearsal.rehearse import SHIPPED

SETTINGS = PhantomSettings(sites=2, patients=5, shape=(32, 32, 16), seed=1)


@dataclass(frozen=True, kw_only=True)
class Running:
    """A consortium whose machines run. ``whole``: the folder of a run of ``experiment`` that nothing disturbed."""

    consortium: Consortium
    faults: Faults
    experiment: Path
    whole: Path


@pytest.fixture(scope="session")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("consortium")
    write_federation(folder / "federation", SETTINGS, workers=1)
    shipped = load_experiment(SHIPPED)
    quick = {
        "rounds": 2,
        "train": shipped.train.model_copy(update={"steps": 2}),
        "model": shipped.model.model_copy(update={"channels": (16, 32, 64)}),
        "compression": Compression(up="int8", down="int8", zstd=True),
    }
    write_experiment(shipped.model_copy(update=quick), folder / "federation", folder / "experiment.toml")
    faults = Faults(folder)
    names = [site.name for site in plan_federation(SETTINGS)]
    with Consortium(folder, names, faults.environment) as consortium:
        consortium.found(folder / "federation")
        consortium.start()
        run = consortium.launch(folder / "experiment.toml")
        consortium.wait_ended(run)
        consortium.wait_reported(run)
        yield Running(
            consortium=consortium,
            faults=faults,
            experiment=folder / "experiment.toml",
            whole=consortium.run_folder(run),
        )
