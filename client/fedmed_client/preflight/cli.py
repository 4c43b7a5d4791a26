"""``fedmed site check``: the way to the coordinator, and, for an experiment, all that a site should know before it takes part."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedmed_client.site.cli_join import HERE, Home

if TYPE_CHECKING:
    from fedmed_client.preflight.run import Preflight
    from fedmed_client.site.home import SiteFolder
    from fedmed_common.config import Experiment

PAGE = "check.html"
_COLOURS = {"fail": "bold red", "warn": "yellow", "pass": "green"}


def check_command(
    experiment: Annotated[
        str,
        typer.Argument(
            help="An experiment's file, or the hash under which it was offered to this site, or how that begins. "
            "Without one, only the way to the coordinator is tried.",
            show_default=False,
            metavar="[EXPERIMENT]",
        ),
    ] = "",
    home: Home = HERE,
    page: Annotated[
        Path | None,
        typer.Option(
            help="Where to write the page with pictures.",
            show_default=f"{PAGE} in the site's folder",
            metavar="FILE",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Look at this site before it takes part: its patients, images and labels, this machine, and the way to the coordinator.

    Every case is read once. What is wrong is named with its case and the fix, on the screen and on a page with pictures, which
    both stay here. Exit code 1: something has to be mended first. Without an experiment, the exit code names what is wrong with
    the way to the coordinator.
    """
    if not experiment:
        from fedmed_client.link.cli import check_connection

        check_connection(home, as_json=as_json)
        return
    from fedmed_client.preflight.page import html
    from fedmed_client.preflight.run import preflight
    from fedmed_client.site.home import SiteFolder
    from fedmed_common.files import write_atomically
    from fedmed_common.loading import load_site

    folder = SiteFolder(home.absolute())
    site = load_site(folder.site_file)
    found = preflight(site, _experiment(experiment, folder), folder.path, progress=not as_json)
    target = page or folder.path / PAGE
    write_atomically(target, html(found, site.data.root).encode(), mode=0o600)
    if as_json:
        _print_json(found)
    else:
        _print(found, site.data.root, target)
    if found.level == "fail":
        raise typer.Exit(1)


def _experiment(text: str, folder: SiteFolder) -> Experiment:
    from fedmed_client.link import approvals
    from fedmed_common.loading import load_experiment

    file = Path(text)
    if file.suffix == ".toml" or file.exists():
        return load_experiment(file)
    return approvals.find(folder, text).asked()


def _print_json(found: Preflight) -> None:
    import json
    from dataclasses import asdict

    from fedmed_client.data.text import printable

    document = {
        "site": found.site,
        "experiment": found.experiment,
        "level": found.level,
        "splits": found.splits,
        "presence": found.presence,
        "findings": [asdict(one) for one in found.findings],
    }
    typer.echo(json.dumps(document, indent=2, default=lambda path: printable(str(path))))


def _print(found: Preflight, root: Path, target: Path) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from fedmed_client.preflight.page import shown

    console = Console()
    counts = ", ".join(f"{found.splits.get(name, 0)} {said}" for name, said in _SPLITS.items())
    console.print(
        f"{found.site} before {found.experiment}: {len(found.cases)} cases of {sum(found.splits.values())} patients ({counts})",
        highlight=False,
        soft_wrap=True,
    )
    shows = ", ".join(f"{name} {count}" for name, count in found.presence.items())
    console.print(f"patients who show: {shows}", highlight=False, soft_wrap=True)
    table = Table(show_lines=False)
    for heading in ("", "case", "what and how to mend it"):
        table.add_column(heading, overflow="fold")
    for one in found.findings:
        case = escape(shown(one.case, root)) if one.case is not None else ""
        fix = f"\n[dim]fix: {escape(one.fix)}[/dim]" if one.fix else ""
        table.add_row(f"[{_COLOURS[one.level]}]{one.level}", case, escape(one.what) + fix)
    console.print(table)
    console.print(
        f"{found.level.upper()}; pictures are in {escape(str(target))}. Nothing of this leaves the machine.",
        style=_COLOURS[found.level],
        soft_wrap=True,
    )


_SPLITS = {"train": "for training", "validation": "for validation", "test": "for test"}
