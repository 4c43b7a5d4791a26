"""``fedmed phantom``: write a synthetic federation."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedmed_common.errors import ConfigError

if TYPE_CHECKING:
    from rich.table import Table

    from fedmed_simulations.phantom.plan import SitePlan
    from fedmed_simulations.phantom.settings import PhantomSettings


def phantom(  # noqa: PLR0913, PLR0917
    out: Annotated[Path, typer.Argument(help="Folder to write; new or empty.")],
    sites: Annotated[int, typer.Option(help="Hospitals.")] = 4,
    patients: Annotated[int, typer.Option(help="Patients per hospital.")] = 24,
    shape: Annotated[
        str, typer.Option(help="Voxels: columns,rows,slices. The field of view stays.")
    ] = "96,96,48",
    seed: Annotated[int, typer.Option(help="The same seed and options give the same bytes.")] = 0,
    imbalance: Annotated[
        float, typer.Option(help="Patients with the commonest lesion class over patients with the rarest.")
    ] = 10.0,
    alpha: Annotated[
        float,
        typer.Option(
            help="Dirichlet concentration of a lesion class over hospitals; smaller is more uneven."
        ),
    ] = 0.5,
    vacant: Annotated[int, typer.Option(help="Lesion classes per hospital that no patient there shows.")] = 1,
    unannotated: Annotated[
        int, typer.Option(help="Lesion classes per hospital that are not labelled there.")
    ] = 1,
    head_share: Annotated[
        float, typer.Option(help="Share of all patients who show the commonest lesion class.")
    ] = 0.5,
    held_out: Annotated[
        bool,
        typer.Option(
            "--held-out",
            help="Other patients of the same hospitals, to test on: every lesion class on --head-share of them.",
        ),
    ] = False,
    workers: Annotated[int, typer.Option(min=0, help="Processes; 0: one per core.")] = 0,
) -> None:
    """Write synthetic hospitals as real DICOM: image series, labels in four formats, and a site.toml each."""
    import time

    from rich.console import Console

    from fedmed_simulations.phantom.plan import plan_federation
    from fedmed_simulations.phantom.settings import PhantomSettings
    from fedmed_simulations.phantom.write import write_federation

    settings = PhantomSettings(
        sites=sites, patients=patients, shape=_shape(shape), seed=seed, imbalance=imbalance, alpha=alpha,
        vacant=vacant, unannotated=unannotated, head_share=head_share, held_out=held_out,
    )  # fmt: skip
    console = Console()
    start = time.perf_counter()
    written = write_federation(out, settings, workers=workers, progress=True)
    seconds = time.perf_counter() - start
    console.print(_table(plan_federation(settings), settings))
    if written:
        console.print(f"{sites * patients} patients written to {out} in {seconds:.1f} s")
    else:
        console.print(f"{out} already holds exactly this federation; nothing was written")


def _shape(text: str) -> tuple[int, int, int]:
    try:
        columns, rows, slices = (int(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(
            f"'{text}' is not three whole numbers", field="shape", fix="write it as 96,96,48"
        ) from None
    return columns, rows, slices


def _table(plans: tuple[SitePlan, ...], settings: PhantomSettings) -> Table:
    from rich import box
    from rich.table import Table

    from fedmed_simulations.phantom.scanner import SYNTAX_NAMES
    from fedmed_simulations.phantom.settings import LESIONS

    table = Table(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
        caption="Right: patients who show each lesion; in brackets where the hospital does not label it.",
    )
    for heading in ("site\nscanner", "stored as\nvoxel mm", "labels\npatients"):
        table.add_column(heading, no_wrap=True)
    for heading in LESIONS:
        table.add_column(heading.replace("_", "\n"), justify="right")
    for site in plans:
        scanner = site.scanner
        size = "x".join(f"{spacing:.1f}" for spacing in scanner.spacing_mm(settings.shape))
        counts = {lesion: str(site.positives(lesion)) for lesion in LESIONS}
        table.add_row(
            f"{site.name}\n{scanner.modality}",
            f"{SYNTAX_NAMES[scanner.transfer_syntax]}\n{size}",
            f"{site.label_format}\n{len(site.patients)}",
            *(count if lesion in site.annotated else f"({count})" for lesion, count in counts.items()),
        )
    return table
