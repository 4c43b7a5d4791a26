"""What a model makes of each test patient, kept beside the run: ``test/<round>.json``. It never leaves this machine.

Patients are named by their number in the site's cohort. Of a segmentation a patient has values by metric and class, as
``dice/liver``; of a classification the probability of each class, what the patient shows, and what was looked for.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedmed_client.evaluate import measurements
from fedmed_client.workbench import SiteHome
from fedmed_common import wire
from fedmed_common.config import Experiment
from fedmed_common.errors import CheckpointError
from fedmed_common.files import write_atomically
from fedmed_common.tasks import patient_mean
from fedmed_common.tasks.classification import patient_prediction
from fedmed_server.state import RunState
from fedmed_strategies.pieces import under

Patients = dict[str, dict[int, Any]]
"""By site and patient."""

_FOLDER = "test"


def measure(run: Path, homes: Sequence[SiteHome], experiment: Experiment, state: RunState) -> None:
    """Measure a round's model on each test patient of the sites, unless that has been done."""
    file = _file(run, state.round)
    if file.exists():
        return
    order = wire.Order(
        kind=wire.Kind.EVALUATE,
        run=run.name,
        round=state.round,
        attempt=0,
        experiment=experiment.order_text(),
        split="test",
        parameters=state.model,
        down=under(wire.DECISION, state.decision),
    )
    of_patient = _mean if experiment.task.name == "segmentation" else _prediction
    found = {
        home.site.name: {
            str(patient): of_patient(cases) for patient, cases in sorted(measurements(home, order).items())
        }
        for home in homes
    }
    file.parent.mkdir(exist_ok=True)
    write_atomically(file, json.dumps(found).encode())


def missing(run: Path, rounds: Sequence[int]) -> tuple[int, ...]:
    """Of the rounds those whose model has not been measured."""
    return tuple(number for number in rounds if not _file(run, number).exists())


def read(run: Path, number: int) -> Patients:
    """What was measured of a round.

    Raises:
        CheckpointError: the file is damaged.
    """
    try:
        document = json.loads(_file(run, number).read_bytes())
        return {
            site: {int(patient): value for patient, value in people.items()}
            for site, people in document.items()
        }
    except (OSError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{_file(run, number)}: cannot be read ({type(error).__name__})\n  fix: delete the run's folder {run}"
        ) from None


def _file(run: Path, number: int) -> Path:
    return run / _FOLDER / f"{number}.json"


def _mean(cases: Sequence[Any]) -> dict[str, float]:
    return {name: mean.value for name, mean in patient_mean(cases).items()}


def _prediction(cases: Sequence[Any]) -> dict[str, list[float]]:
    merged = patient_prediction(cases)
    return {
        "score": merged.score.tolist(),
        "present": merged.present.tolist(),
        "annotated": merged.annotated.tolist(),
    }
