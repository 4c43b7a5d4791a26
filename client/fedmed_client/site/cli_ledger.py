"""``fedmed site ledger``: what was spent here under differential privacy, by whom, and what is left."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedmed_client.site.cli_join import HERE, Home

if TYPE_CHECKING:
    from rich.table import Table

    from fedmed_client.site.spending import Spending

_KINDS = ("html", "svg")
_POINTS = 24


def ledger_command(
    home: Home = HERE,
    export: Annotated[
        Path | None,
        typer.Option(
            help="Also write it: a page for an ethics board (.html), or its picture (.svg).",
            metavar="FILE",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Show what was spent here under differential privacy: by run, in all, and what is left of the ceiling.

    The ledger is checked first; one that was changed is named.
    """
    from rich.console import Console

    from fedmed_client.site.home import SiteFolder
    from fedmed_client.site.spending import spending
    from fedmed_common.errors import ConfigError

    kind = export.suffix.removeprefix(".").lower() if export is not None else "html"
    if kind not in _KINDS:
        raise ConfigError(
            f"'{export}' has no ending that is known",
            field="--export",
            fix=f"use one of {', '.join('.' + one for one in _KINDS)}",
        )
    folder = SiteFolder(home.absolute())
    site = folder.site()
    spent = spending(folder.path, site.name, site.policy, 0 if export is None else _POINTS)
    if as_json:
        typer.echo(json.dumps(asdict(spent) | {"left": spent.left}, indent=2))
    else:
        console = Console()
        if spent.runs:
            console.print(_table(spent))
        if spent.shared:
            console.print(
                "* the noise was shared: the epsilon holds for secure sums over sites, of which at least "
                f"{spent.shared} keep their noise to themselves",
                soft_wrap=True,
                highlight=False,
            )
        console.print(_sentence(spent), soft_wrap=True, highlight=False)
    if export is not None:
        _write(export, kind, spent, folder.connection().consortium if folder.connection_file.exists() else "")


def _write(file: Path, kind: str, spent: Spending, consortium: str) -> None:
    from fedmed_client.site import ledger_page
    from fedmed_common.files import write_atomically

    content = ledger_page.page(spent, consortium) if kind == "html" else ledger_page.picture(spent)
    write_atomically(file, content.encode())
    typer.echo(f"written: {file}", err=True)


def _sentence(spent: Spending) -> str:
    if not spent.runs:
        return "nothing was sent under differential privacy from this folder yet" + _ceiling(spent)
    return (
        f"spent: epsilon {spent.epsilon:.3f} at delta {spent.delta:g}, over {spent.rows} orders"
        + _ceiling(spent)
    )


def _ceiling(spent: Spending) -> str:
    if spent.left is None:
        return "; no ceiling over all runs is set (policy.maximum_epsilon)"
    return f"; the ceiling is {spent.maximum_epsilon:g}, and {spent.left:.3f} is left"


def _table(spent: Spending) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("run", "patients", "rounds", "charged", "steps", "sigma", "q", "epsilon", "last"):
        table.add_column(
            name, justify="left" if name in {"run", "patients", "last"} else "right", overflow="fold"
        )
    for run in spent.runs:
        table.add_row(
            run.run + (" *" if run.sharing > 1 else ""),
            run.split,
            str(run.rounds),
            str(run.reservations),
            str(run.steps),
            ", ".join(f"{sigma:g}" for sigma in run.noise_multipliers),
            ", ".join(f"{rate:g}" for rate in run.sampling_rates),
            f"{run.epsilon:.3f}",
            run.last[:16].replace("T", " "),
        )
    return table
