"""``fedmed site scan``: what a folder holds, shown on the site's own screen and nowhere else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from fedmed_client.data.index import Index, Skipped

_SHOWN_PER_CODE = 10


def scan_command(
    folder: Annotated[Path, typer.Argument(help="The folder tree to index.", show_default=False)],
    index: Annotated[
        Path | None,
        typer.Option(
            help="Where to remember what was read.",
            show_default="one file a folder under ~/.cache/fedmed/index",
        ),
    ] = None,
    workers: Annotated[int, typer.Option(min=0, help="Processes that read; 0: as many as are worth it.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything found as JSON.")] = False,
) -> None:
    """Index a folder of DICOM and list what cannot be used, with the reason of each file.

    Only headers are read. A second scan opens only files that changed, and a scan that was interrupted continues. The
    index holds patient identifiers, is readable by you alone and stays, like this list, on this machine.
    """
    from fedmed_client.data.scan import default_index_file, scan

    found = scan(
        folder, index_file=index or default_index_file(folder), workers=workers, progress=not as_json
    )
    if as_json:
        _print_json(found)
    else:
        _print_tables(found, folder.absolute())


def _print_json(found: Index) -> None:
    import json
    from dataclasses import asdict

    from fedmed_client.data.text import printable

    typer.echo(json.dumps(asdict(found), indent=2, default=lambda path: printable(str(path))))


def _print_tables(found: Index, folder: Path) -> None:
    from rich.console import Console

    console = Console()
    console.print(_summary(found))
    wanted = [item for item in found.skipped if item.code != "not-dicom"]
    if wanted:
        console.print(left_out(wanted, folder, f"{len(wanted)} files left out"))
    others = len(found.skipped) - len(wanted)
    if others:
        console.print(f"{others} other files are not DICOM.", highlight=False)
    console.print("Nothing of this leaves the machine.", style="green")


def _summary(found: Index) -> Table:
    from rich.markup import escape
    from rich.table import Table

    from fedmed_client.data.text import printable

    patients = {series.patient for series in found.series} | {label.patient for label in found.labels}
    table = Table(title=f"{len(patients)} patients")
    for heading in ("kind", "objects", "images", "patients"):
        table.add_column(heading, justify="left" if heading == "kind" else "right")
    for modality in sorted({series.modality for series in found.series}):
        some = [series for series in found.series if series.modality == modality]
        images, people = sum(len(series.files) for series in some), {series.patient for series in some}
        name = escape(printable(modality)) or "no modality"
        table.add_row(f"{name} series", str(len(some)), str(images), str(len(people)))
    for kind in sorted({label.kind for label in found.labels}):
        labels = [label for label in found.labels if label.kind == kind]
        table.add_row(
            f"{kind.upper()} labels", str(len(labels)), "", str(len({label.patient for label in labels}))
        )
    return table


def left_out(skipped: Sequence[Skipped], folder: Path, title: str) -> Table:
    """Files below a folder with their reasons, the first few of each kind."""
    from rich.markup import escape
    from rich.table import Table

    from fedmed_client.data.text import printable

    table = Table(title=title, show_lines=False)
    for heading in ("why", "file", "reason"):
        table.add_column(heading, overflow="fold")
    for code, count in sorted(Counter(item.code for item in skipped).items()):
        some = [item for item in skipped if item.code == code][:_SHOWN_PER_CODE]
        for item in some:
            path = str(item.path.relative_to(folder))
            table.add_row(code, escape(printable(path)), escape(printable(item.reason)))
        if count > len(some):
            table.add_row(code, f"and {count - len(some)} more", "--json lists all")
        table.add_section()
    return table
