"""``fedmed audit``: what a run's privacy is worth, measured by attacks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def audit_command(
    run: Annotated[Path, typer.Argument(help="The folder of a finished run.", show_default=False)],
    seed: Annotated[int, typer.Option(help="Of the attacker's chance; the noise is never seeded.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Attack a simulated run by its own settings: a canary on the release path, a thousand canaries in one run, gradient
    inversion, membership inference.

    The findings go into the run's report. The exit code is 1 where one of them cannot be, if the run kept its promise.
    """
    from rich.console import Console
    from rich.table import Table

    from fedmed_server.report import REPORT, write_report
    from fedmed_simulations import runfolder
    from fedmed_simulations.audit.audit import audit
    from fedmed_simulations.run import homes_for

    experiment, plan = runfolder.open_run(run)
    homes = homes_for(experiment, run, plan.baseline)
    console = Console()
    with console.status("attacking"):
        findings = audit(run, experiment, homes, seed)
    write_report(run)
    if as_json:
        typer.echo(json.dumps([finding.model_dump() for finding in findings], indent=2))
    else:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for name, side in (("attack", "left"), ("measured", "right"), ("at most", "right"), ("", "left")):
            table.add_column(name, justify=side)  # type: ignore[arg-type]
        for one in findings:
            bound = "" if one.bound is None else f"{one.bound:.3f}"
            verdict = "[red]ALARM[/]" if one.alarm else one.unit
            table.add_row(one.name, f"{one.measured:.3f}", bound, verdict)
        console.print(table)
        console.print(f"report: {run / REPORT}", soft_wrap=True, highlight=False)
    if any(finding.alarm for finding in findings):
        raise typer.Exit(1)
