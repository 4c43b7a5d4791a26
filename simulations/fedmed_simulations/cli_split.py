"""``fedmed split``: how an experiment's patients lie, without training."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from fedmed_simulations.partition.counts import Counts


_MOST_COLUMNS = 8
"""Sites up to which each is a column."""
_MOST_ROWS = 60
"""Sites up to which each has a row."""


def split(
    experiment: Annotated[
        str,
        typer.Argument(help="An experiment file, or the name of one that ships with fedmed, as 'nuclei'."),
    ],
    out: Annotated[
        Path | None, typer.Option(help="The picture, a PNG. Absent: the experiment's name, here.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, max=2**63 - 1, help="In place of the experiment's seed.")
    ] = None,
    runs: Annotated[Path, typer.Option(help="Folder for caches, the one that runs go to.")] = Path("runs"),
) -> None:
    """Show which site has how many patients of which class, and draw it; prepares the data, and trains nothing."""
    from fedmed_common.loading import load_experiment
    from fedmed_simulations.checks import check_experiment
    from fedmed_simulations.cli import experiment_file

    file = experiment_file(experiment)
    loaded = load_experiment(file)
    sites = check_experiment(loaded, file)
    if seed is not None:
        loaded = loaded.model_copy(update={"seed": seed})

    from rich.console import Console

    from fedmed_common.files import write_atomically
    from fedmed_simulations.federation import drawing, make_homes
    from fedmed_simulations.partition.counts import Counts
    from fedmed_simulations.partition.picture import draw_split
    from fedmed_simulations.run import SITES, prepare

    console, folder = Console(), runs.absolute() / SITES
    with console.status("preparing"):
        homes, drawn = make_homes(loaded, sites, folder), drawing(loaded, sites, folder)
    cohorts = prepare(homes, loaded, console)
    counts = Counts.of(cohorts, drawn)
    console.print(table_of(counts))
    for sentence in counts.told:
        console.print(sentence, markup=False, highlight=False, soft_wrap=True)
    picture = out or Path(f"{loaded.name}-split.png")
    write_atomically(picture, draw_split(counts))
    console.print(f"picture: {picture}", markup=False, highlight=False, soft_wrap=True)


def table_of(counts: Counts) -> Table:
    """Training patients by class and site, and the sizes of the sites; many sites stand below each other."""
    from rich.table import Table

    columns = [("", ["train", "validation", "test", *counts.classes]), *_by_site(counts)]
    ends = {2}
    if len(counts.sites) > _MOST_COLUMNS:
        rows = zip(*([name, *cells] for name, cells in columns), strict=True)
        columns = [(first, list(rest)) for first, *rest in rows]
        ends = {len(counts.sites) - 1 if len(counts.sites) <= _MOST_ROWS else _MOST_ROWS}
    table = Table(
        title="Patients, and training patients who show a class; -: not annotated there",
        title_justify="left",
        show_edge=False,
        pad_edge=False,
    )
    for number, (name, _) in enumerate(columns):
        table.add_column(name, justify="right" if number else "left", no_wrap=not number, overflow="fold")
    for number, row in enumerate(zip(*(cells for _, cells in columns), strict=True)):
        table.add_row(*row, end_section=number in ends)
    return table


def _by_site(counts: Counts) -> list[tuple[str, list[str]]]:
    """A column for each site, for all of them, and for the pool where it has more than they."""
    columns = []
    each = zip(counts.sites, counts.sizes, counts.shows, counts.annotated, strict=True)
    for site, sizes, shows, annotated in islice(each, _MOST_ROWS):
        cells = [str(count) if known else "-" for count, known in zip(shows, annotated, strict=True)]
        columns.append((site, [*map(str, sizes), *cells]))
    if len(counts.sites) > _MOST_ROWS:
        columns.append((f"{len(counts.sites) - _MOST_ROWS:,} more sites", ["…"] * (3 + len(counts.classes))))
    trained, patients = counts.shows.sum(axis=0), counts.sizes.sum(axis=0)
    columns.append(("all sites", [*map(str, patients), *map(str, trained)]))
    if counts.left_out or (counts.everyone != trained).any():
        pool = [patients[0] + counts.left_out, *patients[1:], *counts.everyone]
        columns.append(("the pool", list(map(str, pool))))
    return columns
