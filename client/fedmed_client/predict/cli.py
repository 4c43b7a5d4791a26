"""``fedmed site predict``: a released model on a study."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedmed_client.site.cli_join import HERE, Home

if TYPE_CHECKING:
    from fedmed_client.predict.released import Released
    from fedmed_client.predict.study import Outcome

PAGE = "prediction.html"


def predict_command(
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
    home: Home = HERE,
) -> None:
    """Segment a study with a released model, prepared exactly as in training, and write a DICOM SEG of each series.

    Of the series in STUDY, those of the modality and description in site.toml are taken; without a site.toml, all. The objects
    say which run, round and file made them. Exit code 1: some series could not be segmented.
    """
    from rich.console import Console
    from rich.markup import escape

    from fedmed_client.predict.released import open_ensemble
    from fedmed_client.predict.study import predict_study
    from fedmed_client.site.home import SiteFolder
    from fedmed_common.errors import ConfigError
    from fedmed_common.files import write_atomically
    from fedmed_common.loading import load_site
    from fedmed_common.site_config import Device

    file = SiteFolder(home.absolute()).site_file
    site = load_site(file) if file.exists() or archive else None
    models = open_ensemble([model, *(also or ())])
    console, outcomes = Console(), []
    wanted, device = (None, Device()) if site is None else (site.data, site.device)
    for outcome in predict_study(study, models, to, wanted, flips=mirrored, device=device):
        outcomes.append(outcome)
        console.print(
            escape(_line(outcome)), highlight=False, soft_wrap=True, style="red" if outcome.problem else ""
        )
    if not outcomes:
        raise ConfigError(
            "holds no series that is wanted",
            file=study,
            fix="see 'fedmed site scan', and [data] in site.toml",
        )
    to.mkdir(parents=True, exist_ok=True)
    write_atomically(to / PAGE, html(outcomes, models).encode(), mode=0o600)
    console.print(f"segmentations and {PAGE} are in {escape(str(to))}", highlight=False, soft_wrap=True)
    written = [outcome.file for outcome in outcomes if outcome.file is not None]
    if archive and written:
        from fedmed_client.pacs.cli import archive_of

        assert site is not None  # noqa: S101
        archive_of(site, file).send(written)
        console.print(f"{len(written)} segmentations are in the archive", highlight=False)
    if any(outcome.problem for outcome in outcomes):
        raise typer.Exit(1)


def html(outcomes: Sequence[Outcome], models: Sequence[Released]) -> str:
    """One page that opens without a network."""
    import base64
    from datetime import UTC, datetime
    from importlib.metadata import version

    from jinja2 import PackageLoader

    from fedmed_client.preflight.thumbnails import colour_of
    from fedmed_common.templates import environment

    experiment = models[0].experiment
    return (
        environment(PackageLoader("fedmed_client.predict", "."))
        .get_template("predict.html")
        .render(
            outcomes=outcomes,
            models=models,
            experiment=experiment,
            colours={name: colour_of(number) for number, name in enumerate(experiment.task.classes, start=1)},
            pictures=[base64.b64encode(outcome.picture).decode("ascii") for outcome in outcomes],
            date=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
            version=version("fedmed"),
        )
    )


def _line(outcome: Outcome) -> str:
    name = f"{outcome.modality} '{outcome.description}'"
    if outcome.problem:
        return f"{name}: {outcome.problem}"
    found = ", ".join(f"{klass} {ml:.1f} ml" for klass, ml in (outcome.ml or {}).items() if ml)
    return f"{name}: {found or 'nothing was found'}"
