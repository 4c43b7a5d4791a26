"""What was found in a study, as a page for people."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from jinja2 import PackageLoader

from fedmed_client.predict.released import Released
from fedmed_client.predict.study import Outcome
from fedmed_client.preflight.thumbnails import colour_of
from fedmed_common.files import write_atomically
from fedmed_common.templates import environment

PAGE = "prediction.html"


def write_page(folder: Path, outcomes: Sequence[Outcome], models: Sequence[Released]) -> None:
    """Into the folder, for its owner alone."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / PAGE, html(outcomes, models).encode(), mode=0o600)


def html(outcomes: Sequence[Outcome], models: Sequence[Released]) -> str:
    """One page that opens without a network."""
    experiment = models[0].experiment
    return (
        environment(PackageLoader("fedmed_client.predict", "."))
        .get_template("predict.html")
        .render(
            outcomes=outcomes,
            models=models,
            experiment=experiment,
            colours={name: colour_of(number) for number, name in enumerate(experiment.task.classes, start=1)},
            pictures=[base64.b64encode(outcome.picture).decode("ascii") for outcome in outcomes],
            date=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
            version=version("fedmed"),
        )
    )


def line_of(outcome: Outcome) -> str:
    """An outcome in a line."""
    name = f"{outcome.modality} '{outcome.description}'"
    if outcome.problem:
        return f"{name}: {outcome.problem}"
    found = ", ".join(f"{klass} {ml:.1f} ml" for klass, ml in (outcome.ml or {}).items() if ml)
    return f"{name}: {found or 'nothing was found'}{'; ' + outcome.note if outcome.note else ''}"
