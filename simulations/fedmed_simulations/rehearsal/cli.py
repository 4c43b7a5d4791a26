"""``fedmed rehearse``: a whole consortium on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def rehearse_command(
    sites: Annotated[int, typer.Option(min=2, max=32, help="Hospitals.")] = 3,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of the experiment.")] = 5,
    patients: Annotated[int, typer.Option(min=5, help="Patients per hospital.")] = 6,
    folder: Annotated[
        Path | None, typer.Option(help="Where the consortium is made; absent: a temporary folder.")
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the temporary folder.")] = False,
) -> None:
    """Rehearse a consortium on loopback: provision, join, serve, connect, launch, and compare with a simulation.

    Each hospital has a folder and processes of its own, and talks to the server over mutual TLS with certificates made
    for this rehearsal. The final weights must equal those of the same experiment on the inline engine, bit for bit.
    """
    import shutil
    import tempfile

    from rich.console import Console

    from fedmed_simulations.rehearsal.rehearse import rehearse_and_tell

    console = Console()
    where = folder.absolute() if folder else Path(tempfile.mkdtemp(prefix="fedmed-rehearsal-"))
    try:
        rehearse_and_tell(where, sites=sites, rounds=rounds, patients=patients, console=console)
    finally:
        if folder is None and not keep:
            shutil.rmtree(where, ignore_errors=True)
        else:
            console.print(f"folder: {where}", soft_wrap=True, highlight=False)
