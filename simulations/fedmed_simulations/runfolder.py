"""A simulated run's folder: what was asked is written there first, so that a killed run can go on."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import tomli_w

from fedmed_common.config import Experiment
from fedmed_common.errors import CheckpointError
from fedmed_common.files import write_atomically
from fedmed_common.loading import load_experiment
from fedmed_server import folders
from fedmed_simulations.engines import ENGINES
from fedmed_simulations.resources import ANY, Engine, Resources, check_resources

EXPERIMENT, PLAN = "experiment.toml", "simulation.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a run folder is for.

    ``baseline``: '' for the federation, 'pooled', or 'local:<site>'. ``baselines``: what the federation is to be
    compared with, each in a run folder of its own. ``command``: what started it. ``resources``: what the engine may take.
    """

    engine: Engine
    command: str
    baseline: str = ""
    baselines: tuple[str, ...] = ()
    resources: Resources = ANY


def create(folder: Path, experiment: Experiment, plan: Plan) -> None:
    """Make the run's folder with the resolved experiment and the plan: whole, or not at all."""
    document = experiment.model_dump(mode="json", exclude_none=True)
    files = {
        EXPERIMENT: tomli_w.dumps(document).encode(),
        PLAN: _text(plan),
    }
    folders.create(folder, files)


def move(folder: Path, engine: Engine | None, workers: int | None, address: str | None) -> None:
    """Have the run, and those of its baselines that were begun, go on elsewhere; None: as before.

    Raises:
        CheckpointError: not a run folder.
        ConfigError: the engine cannot have so many workers.
    """
    for one in (folder, *sorted(folder.parent.glob(f"{folder.name}.*"))):
        _, plan = open_run(one)
        resources = Resources(
            workers=plan.resources.workers if workers is None else workers,
            address=plan.resources.address if address is None else address,
        )
        moved = replace(plan, engine=engine or plan.engine, resources=resources)
        if moved != plan:
            check_resources(moved.engine, resources)
            write_atomically(one / PLAN, _text(moved))


def _text(plan: Plan) -> bytes:
    return json.dumps(asdict(plan), indent=2).encode()


def open_run(folder: Path) -> tuple[Experiment, Plan]:
    """The experiment and plan of a run.

    Raises:
        CheckpointError: not a run folder.
    """
    try:
        fields = json.loads((folder / PLAN).read_text())
        resources = Resources(**fields.pop("resources", {}))
        plan = Plan(**{**fields, "baselines": tuple(fields.get("baselines", ())), "resources": resources})
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{folder}: not a run's folder ({type(error).__name__} on {PLAN})\n  fix: name a folder below --runs"
        ) from None
    if plan.engine not in ENGINES:
        raise CheckpointError(f"{folder / PLAN}: unknown engine '{plan.engine}'")
    return load_experiment(folder / EXPERIMENT), plan
