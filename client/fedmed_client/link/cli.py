"""``fedmed site check``, ``runs``, ``approve`` and ``reject``: the way to the coordinator, and what this site carries out."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from fedmed_client.site.cli_join import HERE, Home

AsJson = Annotated[bool, typer.Option("--json", help="Print everything as JSON.")]
Hash = Annotated[
    str, typer.Argument(help="The experiment's hash, or how it begins.", show_default=False, metavar="HASH")
]


def check_connection(home: Path, *, as_json: bool) -> None:
    """Try the way to the coordinator step by step; where it ends, say why and what to do. The exit code names the problem."""
    from fedmed_client.link.diagnose import check
    from fedmed_client.site.home import SiteFolder

    steps = check(SiteFolder(home.absolute()))
    error = steps[-1].error
    if as_json:
        code = error.exit_code if error is not None else 0
        listed = [
            {
                "step": step.name,
                "ok": step.error is None,
                "said": step.said,
                "code": step.error.code if step.error else "",
            }
            for step in steps
        ]
        typer.echo(json.dumps({"exit_code": code, "steps": listed}, indent=2))
        raise typer.Exit(code)
    for step in steps:
        if step.error is None:
            typer.echo(f"{step.name:<13}{step.said}")
    if error is not None:
        raise error


def runs_command(
    prefix: Annotated[
        str,
        typer.Argument(
            help="Show this one alone, with all that it would do.", show_default=False, metavar="[HASH]"
        ),
    ] = "",
    home: Home = HERE,
    as_json: AsJson = False,
) -> None:
    """List the experiments that were offered to this site, and what was decided about each."""
    from fedmed_client.link import approvals
    from fedmed_client.site.home import SiteFolder

    folder = SiteFolder(home.absolute())
    found = [approvals.find(folder, prefix)] if prefix else approvals.load(folder)
    if as_json:
        typer.echo(json.dumps([asdict(approval) for approval in found], indent=2))
    elif prefix:
        typer.echo("\n".join(approvals.describe(found[0])))
    elif not found:
        typer.echo("no experiment has been offered to this site yet")
    else:
        for one in found:
            typer.echo(f"{one.hash[:12]}  {one.state:<9} {one.first_seen[:16]}  {one.experiment}")


def approve_command(hash: Hash, home: Home = HERE) -> None:
    """Permit an experiment here. 'fedmed site runs HASH' shows beforehand what it would do."""
    from fedmed_client.link import approvals
    from fedmed_client.site.home import SiteFolder

    approved = approvals.approve(SiteFolder(home.absolute()), hash)
    typer.echo("\n".join(approvals.describe(approved)))


def reject_command(hash: Hash, home: Home = HERE) -> None:
    """Forbid an experiment here for good; work for it that runs is cancelled. A changed experiment has another hash."""
    from fedmed_client.link import approvals
    from fedmed_client.site.home import SiteFolder

    rejected = approvals.reject(SiteFolder(home.absolute()), hash)
    typer.echo("\n".join(approvals.describe(rejected)))
