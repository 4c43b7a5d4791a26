"""``fedmed plan``: an experiment from a consortium's data sheet."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tomli_w
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fedmed_common.config import Experiment
from fedmed_common.errors import ConfigError
from fedmed_common.files import write_atomically
from fedmed_common.loading import validate
from fedmed_server.survey.planning import plan
from fedmed_server.survey.sheet import read_sheet


def plan_command(
    sheet: Annotated[
        Path,
        typer.Argument(help="The folder of a survey's run, or its datasheet.json.", show_default=False),
    ],
    to: Annotated[Path, typer.Option(help="The experiment file to write.")] = Path("planned.toml"),
    memory_gb: Annotated[float, typer.Option(help="GPU memory of the smallest site, in GB.", min=0.0)] = 8.0,
    landmarks: Annotated[
        bool,
        typer.Option(
            "--landmarks", help="Put all images on one scale of intensities: MR of several scanners."
        ),
    ] = False,
    rounds: Annotated[int, typer.Option(help="Of the experiment.", min=1)] = 50,
    federation: Annotated[
        Path | None,
        typer.Option(
            help="A folder of sites, to simulate the experiment on this machine.", show_default=False
        ),
    ] = None,
) -> None:
    """Propose voxel size, patch, intensities, network and batch by nnU-Net's rules, from a data sheet alone."""
    if to.exists():
        raise ConfigError("is there already", file=to, fix="name another file with --to, or remove it")
    found = plan(read_sheet(sheet), memory_gb=memory_gb, landmarks=landmarks)
    tables = {**found.tables, "rounds": rounds}
    if federation is not None:
        tables["simulation"] = {"federation": str(federation.absolute())}
    experiment = validate(Experiment, tables, to)
    written = experiment.model_dump(mode="json", exclude_none=True, exclude_unset=True)
    ordered = {name: value for name, value in written.items() if not isinstance(value, dict)}
    write_atomically(to, tomli_w.dumps({**ordered, **written}).encode())
    table = Table("field", "value", "why", box=None, pad_edge=False)
    for row in found.reasons:
        table.add_row(*map(escape, row))
    console = Console(soft_wrap=False)
    console.print(table)
    console.print(f"experiment: {to}", soft_wrap=True, highlight=False)
