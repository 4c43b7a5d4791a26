"""``fedmed report`` and ``fedmed track``: draw again what a run's folder tells."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Run = Annotated[Path, typer.Argument(help="The run's folder, as runs/NAME.", show_default=False)]


def report_command(run: Run) -> None:
    """Draw a run's report.html again, also while it runs."""
    from fedmed_server.report import write_report

    typer.echo(f"report: {write_report(run)}")


def track_command(
    run: Run,
    uri: Annotated[
        str | None,
        typer.Option(
            help="Where MLflow keeps runs. Absent: as the experiment says, else mlflow.db beside the run."
        ),
    ] = None,
) -> None:
    """Bring MLflow up to date with a run."""
    from fedmed_server.report.source import read_experiment
    from fedmed_server.tracking import track

    sent = track(run, read_experiment(run), uri=uri)
    typer.echo(f"tracking: {sent} new record{'' if sent == 1 else 's'} sent, nothing is missing")
