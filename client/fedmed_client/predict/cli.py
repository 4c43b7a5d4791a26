"""``fedmed site predict``: a released model on a study."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedmed_client.site.cli_join import HERE, Home


def predict_command(  # noqa: PLR0913, PLR0917  each is an option of its own
    model: Annotated[
        Path,
        typer.Argument(
            help="A run's folder, or a model that it published, as models/best.safetensors.",
            show_default=False,
        ),
    ],
    study: Annotated[
        Path, typer.Argument(help="The folder with the study's DICOM files.", show_default=False)
    ],
    to: Annotated[
        Path,
        typer.Option(
            "--to", help="The folder that is given the segmentations and a page.", show_default=False
        ),
    ],
    archive: Annotated[
        bool,
        typer.Option("--archive", help="Also store the segmentations in the archive of [pacs] in site.toml."),
    ] = False,
    also: Annotated[
        list[Path] | None,
        typer.Option(
            "--also",
            help="Another model of the same experiment, whose probabilities are averaged in.",
            show_default=False,
        ),
    ] = None,
    mirrored: Annotated[
        bool,
        typer.Option(
            "--mirrored",
            help="Look at each image also mirrored along each axis, and say how much the looks differ.",
        ),
    ] = False,
    dropout: Annotated[
        int,
        typer.Option(
            "--dropout",
            help="Look so many times with the model's dropout at work, and say how much the looks differ.",
            min=0,
        ),
    ] = 0,
    rtstruct: Annotated[
        bool, typer.Option("--rtstruct", help="Also write an RTSTRUCT of each series of single images.")
    ] = False,
    home: Home = HERE,
) -> None:
    """Segment a study with a released model, prepared exactly as in training, and write a DICOM SEG of each series.

    Of the series in STUDY, those of the modality and description in site.toml are taken; without a site.toml, all. The objects
    say which run, round and file made them. Exit code 1: some series could not be segmented.
    """
    from rich.console import Console
    from rich.markup import escape

    from fedmed_client.predict.page import PAGE, line_of, write_page
    from fedmed_client.predict.released import open_ensemble
    from fedmed_client.predict.study import Wish, predict_study
    from fedmed_client.site.home import SiteFolder
    from fedmed_common.errors import ConfigError
    from fedmed_common.loading import load_site
    from fedmed_common.site_config import Device

    file = SiteFolder(home.absolute()).site_file
    site = load_site(file) if file.exists() or archive else None
    models = open_ensemble([model, *(also or ())])
    console, outcomes = Console(), []
    wanted, device = (None, Device()) if site is None else (site.data, site.device)
    wish = Wish(flips=mirrored, dropouts=dropout, structures=rtstruct, device=device)
    for outcome in predict_study(study, models, to, wanted, wish):
        outcomes.append(outcome)
        console.print(
            escape(line_of(outcome)), highlight=False, soft_wrap=True, style="red" if outcome.problem else ""
        )
    if not outcomes:
        raise ConfigError(
            "holds no series that is wanted",
            file=study,
            fix="see 'fedmed site scan', and [data] in site.toml",
        )
    write_page(to, outcomes, models)
    console.print(f"segmentations and {PAGE} are in {escape(str(to))}", highlight=False, soft_wrap=True)
    written = [file for outcome in outcomes for file in outcome.files]
    if archive and written:
        from fedmed_client.pacs.cli import archive_of

        assert site is not None  # noqa: S101
        archive_of(site, file).send(written)
        console.print(f"{len(written)} objects are in the archive", highlight=False)
    if any(outcome.problem for outcome in outcomes):
        raise typer.Exit(1)
