"""``fedmed report``, ``fedmed track`` and ``fedmed publish``: draw again, send again, register what a run's folder tells."""

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


def publish_command(
    run: Run,
    alias: Annotated[
        str,
        typer.Option("--as", help="An alias that means this version from now on, as candidate or champion."),
    ] = "candidate",
    model: Annotated[str, typer.Option("--model", help="best, or last.")] = "best",
    name: Annotated[str, typer.Option(help="Of the registered model. Absent: the experiment's.")] = "",
    uri: Annotated[
        str | None,
        typer.Option(
            help="Where MLflow keeps models. Absent: as the experiment says, else mlflow.db beside the run."
        ),
    ] = None,
) -> None:
    """Register a run's model, with its record, in MLflow's model registry.

    The same weights are registered once: called again with another --as, only the alias moves.
    """
    from fedmed_common.errors import ConfigError
    from fedmed_server.publishing import publish

    if model not in ("best", "last"):
        raise ConfigError(f"'{model}' is none", field="--model", fix="best or last")
    made = publish(run, kind="best" if model == "best" else "last", name=name, alias=alias, uri=uri)
    what = "registered" if made.new else "was registered already"
    called = f", which '{alias}' means now" if alias else ""
    typer.echo(f"{made.name}, version {made.version}: {what}{called}\nSHA-256 {made.digest}")
