"""A simulated run's folder: what was asked is written there first, so that a killed run can go on."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import tomli_w

from fedmed_common.config import Experiment
from fedmed_common.errors import CheckpointError
from fedmed_common.loading import load_experiment
from fedmed_server import folders
from fedmed_simulations.engines import ENGINES, Engine

EXPERIMENT, PLAN = "experiment.toml", "simulation.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a run folder is for.

    ``baseline``: '' for the federation, 'pooled', or 'local:<site>'. ``baselines``: what the federation is to be
    compared with, each in a run folder of its own. ``command``: what started it.
    """

    engine: Engine
    command: str
    baseline: str = ""
    baselines: tuple[str, ...] = ()


def create(folder: Path, experiment: Experiment, plan: Plan) -> None:
    """Make the run's folder with the resolved experiment and the plan: whole, or not at all."""
    document = experiment.model_dump(mode="json", exclude_none=True)
    files = {
        EXPERIMENT: tomli_w.dumps(document).encode(),
        PLAN: json.dumps(asdict(plan), indent=2).encode(),
    }
    folders.create(folder, files)


def open_run(folder: Path) -> tuple[Experiment, Plan]:
    """The experiment and plan of a run.

    Raises:
        CheckpointError: not a run folder.
    """
    try:
        fields = json.loads((folder / PLAN).read_text())
        plan = Plan(**{**fields, "baselines": tuple(fields.get("baselines", ()))})
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{folder}: not a run's folder ({type(error).__name__} on {PLAN})\n  fix: name a folder below --runs"
        ) from None
    if plan.engine not in ENGINES:
        raise CheckpointError(f"{folder / PLAN}: unknown engine '{plan.engine}'")
    return load_experiment(folder / EXPERIMENT), plan
