"""``fedmed site find``, ``fetch``, ``receive`` and ``send``: a site and its picture archive."""

from __future__ import annotations

import re
from datetime import date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedmed_client.site.cli_join import HERE, Home

if TYPE_CHECKING:
    import threading

    from rich.console import Console

    from fedmed_client.pacs.keeping import Incoming
    from fedmed_client.pacs.query import Archive, FoundSeries, Query
    from fedmed_client.predict.arriving import Arriving
    from fedmed_common.config import Site
    from fedmed_common.site_config import Pacs

_LOOK_SECONDS = 0.5

Modalities = Annotated[
    list[str] | None,
    typer.Option("--modality", help="Series of it; may be given several times.", show_default=False),
]
Since = Annotated[
    str | None,
    typer.Option(help="Studies from this day on, as 2024-01-31.", show_default=False, metavar="DAY"),
]
Until = Annotated[str | None, typer.Option(help="Studies up to this day.", show_default=False, metavar="DAY")]
Description = Annotated[
    str | None,
    typer.Option(help="A regular expression that the series' description matches.", show_default=False),
]
Accessions = Annotated[
    Path | None,
    typer.Option(help="A file with an accession number a line.", show_default=False, metavar="FILE"),
]
Deidentify = Annotated[bool, typer.Option("--deidentify", help="Keep copies without the patient alone.")]
Secret = Annotated[
    Path | None,
    typer.Option(help="With --deidentify: see 'fedmed site deidentify'.", show_default=False, metavar="FILE"),
]


def find_command(
    modality: Modalities = None,
    since: Since = None,
    until: Until = None,
    description: Description = None,
    accessions: Accessions = None,
    home: Home = HERE,
) -> None:
    """List the series of the picture archive that fit, as [pacs] in site.toml says where it is. Fetches nothing."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from fedmed_client.data.text import printable

    _, pacs = _site(home)
    found = list(_archive(pacs).find(_query(modality, since, until, description, accessions)))
    table = Table(title=f"{len(found)} series of {len({one.study for one in found})} studies")
    for heading in ("day", "modality", "description", "images"):
        table.add_column(heading, justify="right" if heading == "images" else "left")
    for one in found:
        images = "" if one.images is None else str(one.images)
        table.add_row(*(escape(printable(text)) for text in (one.day, one.modality, one.description, images)))
    Console().print(table)


def fetch_command(  # noqa: PLR0913, PLR0917  each is an option of its own
    folder: Annotated[
        Path, typer.Argument(help="Where the files go; made where there is none.", show_default=False)
    ],
    modality: Modalities = None,
    since: Since = None,
    until: Until = None,
    description: Description = None,
    accessions: Accessions = None,
    deidentify: Deidentify = False,
    secret: Secret = None,
    home: Home = HERE,
) -> None:
    """Fetch the series that fit from the picture archive. Those that are here already are not fetched again.

    Interrupt it at any time: the next one goes on where it was. A series of which not all images came is named, and asked again
    the next time.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    site, pacs = _site(home)
    archive, query = _archive(pacs), _query(modality, since, until, description, accessions)
    incoming = _incoming(folder, site, deidentify, secret, pacs.per_second)
    console = Console()
    found = list(archive.find(query))
    missing = [one for one in found if not incoming.is_fetched(one)]
    short: list[str] = []
    columns = (TextColumn("fetching series"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, transient=True, console=Console(stderr=True)) as bar:
        for series in bar.track(missing):
            problem = fetch(archive, series, incoming)
            if problem:
                short.append(problem)
    console.print(
        f"{len(found)} series fit, {len(found) - len(missing)} were here already; {incoming.kept} images came",
        highlight=False,
    )
    _tell_refused(incoming, console)
    for problem in short:
        console.print(problem, style="yellow", highlight=False, soft_wrap=True, markup=False)
    if short:
        raise typer.Exit(1)


def fetch(archive: Archive, series: FoundSeries, incoming: Incoming) -> str:
    """Fetch a series. What is wrong with it, for the person at this machine; empty: all came."""
    from fedmed_client.data.text import printable
    from fedmed_client.pacs.query import ArchiveError
    from fedmed_common.errors import DataError

    name = printable(f"{series.modality} series of {series.day} '{series.description}'")
    came: set[str] = set()
    lost = 0

    def keep(content: bytes) -> None:
        nonlocal lost
        try:
            came.add(incoming.keep(content, series.series))
        except ArchiveError:
            raise
        except DataError:
            lost += 1

    try:
        archive.fetch(series, keep)
    except ArchiveError as error:
        return f"{name}: {error}"
    if lost:
        return f"{name}: {lost} of {lost + len(came)} images were not kept"
    if not came or (series.images is not None and len(came) < series.images):
        return f"{name}: {len(came)} of {series.images or '?'} images came"
    incoming.note_fetched(series)
    return ""


def receive_command(
    folder: Annotated[
        Path, typer.Argument(help="Where the files go; made where there is none.", show_default=False)
    ],
    deidentify: Deidentify = False,
    secret: Secret = None,
    predict: Annotated[
        Path | None,
        typer.Option(
            help="A released model, or a run's folder: look at every study that arrives, as 'fedmed site predict' does.",
            show_default=False,
            metavar="MODEL",
        ),
    ] = None,
    to: Annotated[
        Path | None,
        typer.Option(
            "--to", help="With --predict: where results go, a folder for each study.", show_default=False
        ),
    ] = None,
    archive: Annotated[
        bool, typer.Option("--archive", help="With --predict: also store results in the picture archive.")
    ] = False,
    quiet: Annotated[
        float,
        typer.Option(
            help="With --predict: a study is complete once nothing of it has come for so many seconds.",
            min=0.0,
        ),
    ] = 60.0,
    home: Home = HERE,
) -> None:
    """Take what the picture archive, or a scanner, pushes (C-STORE), until it is stopped with Ctrl-C or SIGTERM.

    [pacs] in site.toml says at which address and port, under which title, who may push, and whether with TLS.
    """
    import signal
    import threading

    from rich.console import Console

    from fedmed_client.pacs.receiver import Receiver
    from fedmed_common.errors import ConfigError

    site, pacs = _site(home)
    incoming = _incoming(folder, site, deidentify, secret, 0.0)
    if archive and deidentify:
        raise ConfigError(
            "would store results of patients and images that the archive does not know",
            field="--archive",
            fix="leave --deidentify out, or keep the results in a folder",
        )
    arriving = _arriving(folder, site, pacs, (predict, to, archive), quiet)
    if arriving is not None:
        incoming.on_kept = arriving.note
    receiver, stop = Receiver(pacs, incoming.keep), threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    console = Console()
    port = receiver.start()
    console.print(f"{pacs.own_title} listens at {pacs.own_host}:{port}", highlight=False)
    if arriving is not None:
        _look(arriving, stop, console)
    stop.wait()
    receiver.stop()
    console.print(f"stopped; {incoming.kept} images came", highlight=False)
    _tell_refused(incoming, console)
    if receiver.problem:
        console.print(receiver.problem, style="yellow", highlight=False, soft_wrap=True, markup=False)


def send_command(
    files: Annotated[list[Path], typer.Argument(help="DICOM files.", show_default=False)], home: Home = HERE
) -> None:
    """Store files in the picture archive."""
    from fedmed_common.errors import ConfigError

    _, pacs = _site(home)
    for file in files:
        if not file.is_file():
            raise ConfigError("is not a file", file=file, fix="name DICOM files")
    _archive(pacs).send(files)
    typer.echo(f"{len(files)} files are in the archive")


def _site(home: Path) -> tuple[Site, Pacs]:
    from fedmed_client.site.home import SiteFolder
    from fedmed_common.loading import load_site

    file = SiteFolder(home.absolute()).site_file
    site = load_site(file)
    return site, _pacs(site, file)


def archive_of(site: Site, file: Path) -> Archive:
    """The archive that a site's file names.

    Raises:
        ConfigError: it names none.
    """
    return _archive(_pacs(site, file))


def _pacs(site: Site, file: Path) -> Pacs:
    from fedmed_common.errors import ConfigError

    if site.pacs is None:
        raise ConfigError(
            "is missing",
            file=file,
            field="pacs",
            fix='add [pacs] with url = "https://…/dicom-web", or host, port and title',
        )
    return site.pacs


def _archive(pacs: Pacs) -> Archive:
    from fedmed_common.errors import ConfigError

    if pacs.url:
        from fedmed_client.pacs.dicomweb import DicomWeb

        return DicomWeb.of(pacs)
    if not pacs.host:
        raise ConfigError("has neither url nor host", field="pacs", fix="say where the archive is")
    from fedmed_client.pacs.dimse import Dimse

    return Dimse(pacs)


def _query(
    modalities: list[str] | None,
    since: str | None,
    until: str | None,
    description: str | None,
    accessions: Path | None,
) -> Query:
    from fedmed_client.pacs.query import Query
    from fedmed_common.errors import ConfigError

    try:
        pattern = None if description is None else re.compile(description)
    except re.error as error:
        raise ConfigError(
            f"not a regular expression: {error}", field="--description", fix="correct it"
        ) from None
    numbers: tuple[str, ...] = ()
    if accessions is not None:
        try:
            lines = accessions.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"cannot be read ({type(error).__name__})", file=accessions, fix="name a text file"
            ) from None
        numbers = tuple(line.strip() for line in lines if line.strip())
        if not numbers:
            raise ConfigError("holds no accession number", file=accessions, fix="write one a line")
    return Query(
        modalities=tuple(modalities or ()),
        since=_day(since, "--since"),
        until=_day(until, "--until"),
        description=pattern,
        accessions=numbers,
    )


def _day(text: str | None, option: str) -> date | None:
    from fedmed_common.errors import ConfigError

    if text is None:
        return None
    try:
        return datetime.strptime(text, "%Y-%m-%d").date()
    except ValueError:
        raise ConfigError(f"'{text}' is no day", field=option, fix="write it as 2024-01-31") from None


def _arriving(
    folder: Path, site: Site, pacs: Pacs, asked: tuple[Path | None, Path | None, bool], quiet: float
) -> Arriving | None:
    """What looks at arriving studies; None where nothing is to."""
    from fedmed_common.errors import ConfigError

    model, to, archive = asked
    if model is None:
        if to is not None or archive:
            raise ConfigError("needs --predict", field="--to" if to else "--archive", fix="name a model")
        return None
    if to is None:
        raise ConfigError("is missing", field="--to", fix="name a folder for what is found")
    if to.absolute().is_relative_to(folder.absolute()):
        raise ConfigError("lies in the folder that is filled", field="--to", fix="name another folder")
    from fedmed_client.predict.arriving import Arriving
    from fedmed_client.predict.released import open_ensemble
    from fedmed_client.predict.study import Wish

    arriving = Arriving(
        folder=folder.absolute(),
        results=to.absolute(),
        models=open_ensemble([model]),
        wanted=site.data,
        wish=Wish(device=site.device),
        quiet_seconds=quiet,
    )
    if archive:
        arriving.store = _archive(pacs).send
    arriving.open()
    return arriving


def _look(arriving: Arriving, stop: threading.Event, console: Console) -> None:
    """Look at studies as they become complete, until it is stopped; what goes wrong with one is said, and the next is looked
    at."""
    from fedmed_client.predict.page import line_of

    while not stop.wait(_LOOK_SECONDS):
        study = arriving.next()
        if study is None:
            continue
        try:
            said = [line_of(outcome) for outcome in arriving.look(study)] or [
                "holds no series that is wanted"
            ]
        except Exception as error:  # of one study: the others are still to be looked at
            said = [f"could not be looked at, or stored ({type(error).__name__}): {error}"]
        for line in said:
            console.print(f"{study}: {line}", highlight=False, soft_wrap=True, markup=False)


def _incoming(folder: Path, site: Site, deidentify: bool, secret: Path | None, per_second: float) -> Incoming:
    from fedmed_client.deidentify.cli import default_secret, label_names
    from fedmed_client.deidentify.secret import SiteSecret
    from fedmed_client.deidentify.table import Options
    from fedmed_client.pacs.keeping import Deidentifying, Incoming

    deidentifying = None
    if deidentify:
        options = Options(labels=label_names(site))
        deidentifying = Deidentifying(SiteSecret.open(secret or default_secret()), options)
    incoming = Incoming(
        folder.absolute(),
        least_free_gb=site.limits.least_free_gb,
        per_second=per_second,
        deidentifying=deidentifying,
    )
    incoming.open()
    return incoming


def _tell_refused(incoming: Incoming, console: Console) -> None:
    from fedmed_client.data.text import printable

    for code, (count, reason) in sorted(incoming.refused.items()):
        said = f"{count} images were not kept ({code}), the first because: {printable(reason)}"
        console.print(said, style="yellow", highlight=False, soft_wrap=True, markup=False)
