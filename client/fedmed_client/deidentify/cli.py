"""``fedmed site deidentify``: copies of a folder's images and labels without the patients."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from fedmed_client.deidentify.folder import Outcome
    from fedmed_client.deidentify.table import Options
    from fedmed_common.config import Site


def deidentify_command(  # noqa: PLR0913, PLR0917  each is an option of its own
    source: Annotated[
        Path | None, typer.Argument(help="The folder tree with the originals.", show_default=False)
    ] = None,
    target: Annotated[
        Path | None,
        typer.Argument(help="The folder that is given copies; made where there is none.", show_default=False),
    ] = None,
    secret: Annotated[
        Path | None,
        typer.Option(
            help="The site's secret, from which pseudonyms follow; made where there is none.",
            show_default="~/.local/share/fedmed/deidentify.key",
            metavar="FILE",
        ),
    ] = None,
    site: Annotated[
        Path | None,
        typer.Option(
            help="site.toml, whose label names stay as they are.", show_default=False, metavar="FILE"
        ),
    ] = None,
    dates: Annotated[
        Literal["shifted", "removed"],
        typer.Option(help="Each patient's dates are moved by a time of their own, or left out."),
    ] = "shifted",
    descriptors: Annotated[
        Literal["cleaned", "removed"],
        typer.Option(help="Descriptions keep words of anatomy and acquisition alone, or are left out."),
    ] = "cleaned",
    look_for_text: Annotated[
        bool, typer.Option("--text/--no-text", help="Look for text in the pixels, and black it out.")
    ] = True,
    table: Annotated[
        bool, typer.Option("--table", help="Print what is done with each attribute, and end.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print what became of each file as JSON.")] = False,
) -> None:
    """Copy images, segmentations and structure sets without the patients, by the basic profile of DICOM PS3.15 Annex E.

    Reports, presentation states and documents are refused, and so is each file that cannot be freed of its patient with
    certainty. The list of files stays on this machine, like the secret: with it, and a patient's number, the pseudonym can be
    found again.
    """
    from fedmed_client.deidentify.folder import deidentify_folder
    from fedmed_client.deidentify.secret import SiteSecret
    from fedmed_client.deidentify.table import Options
    from fedmed_common.errors import ConfigError
    from fedmed_common.loading import load_site

    labels = label_names(load_site(site)) if site is not None else frozenset()
    options = Options(dates=dates, descriptors=descriptors, labels=labels)
    if table:
        typer.echo("\n".join(table_lines(options)))
        return
    if source is None or target is None:
        raise ConfigError("two folders are needed", fix="fedmed site deidentify ORIGINALS COPIES")
    outcomes = deidentify_folder(
        source,
        target,
        SiteSecret.open(secret or default_secret()),
        options,
        look_for_text=look_for_text,
        progress=not as_json,
    )
    if as_json:
        _print_json(outcomes)
    else:
        _print_tables(outcomes, source.resolve(), target)
    if not any(outcome.target for outcome in outcomes):
        raise typer.Exit(1)


def table_lines(options: Options) -> list[str]:
    """The profile's table and what is done with each of its attributes, as Markdown."""
    from fedmed_client.deidentify.table import rows

    lines = ["| tag | attribute | profile | here |", "|---|---|---|---|"]
    for row in rows(options):
        tag = f"({row.tag.group:04X},{row.tag.element:04X})" if row.tag is not None else ""
        lines.append(f"| {tag} | {row.name} | {row.basic} | {row.action.value} |")
    return lines


def label_names(site: Site) -> frozenset[str]:
    """Those that a site's file lists, in the form in which they are compared."""
    from fedmed_client.data.text import normalise

    names = [name for names in site.labels.values() for name in names]
    return frozenset(normalise(name) for name in (*names, *site.ignore_labels))


def default_secret() -> Path:
    """Where the secret is kept unless a command says otherwise."""
    import os

    return (
        Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
        / "fedmed"
        / "deidentify.key"
    )


def _print_json(outcomes: Sequence[Outcome]) -> None:
    import json
    from dataclasses import asdict

    from fedmed_client.data.text import printable

    typer.echo(
        json.dumps([asdict(one) for one in outcomes], indent=2, default=lambda path: printable(str(path)))
    )


def _print_tables(outcomes: Sequence[Outcome], source: Path, target: Path) -> None:
    from rich.console import Console
    from rich.markup import escape

    from fedmed_client.cli_scan import left_out
    from fedmed_client.data.index import Skipped

    console = Console()
    written = [outcome for outcome in outcomes if outcome.target]
    patients = {outcome.target.partition("/")[0] for outcome in written}
    texts = sum(bool(outcome.texts) for outcome in written)
    console.print(
        f"{len(written)} files of {len(patients)} patients are in {escape(str(target))}"
        + (f"; text was blacked out in {texts} of them" if texts else ""),
        soft_wrap=True,
        highlight=False,
    )
    left = [
        Skipped(path=outcome.source, code=outcome.code, reason=outcome.reason)
        for outcome in outcomes
        if outcome.code and outcome.code != "not-dicom"
    ]
    if left:
        console.print(left_out(left, source, f"{len(left)} files were not copied"))
    others = sum(outcome.code == "not-dicom" for outcome in outcomes)
    if others:
        console.print(f"{others} other files are not DICOM.", highlight=False)
