"""The coordinator's commands ``fedmed launch``, ``status``, ``log``, ``stop`` and ``sites``, on the server's folder."""

from __future__ import annotations

import json
import shlex
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from fedmed_server.deployment.home import ServerHome

Home = Annotated[
    Path, typer.Option(envvar="FEDMED_HOME", help="The server's folder.", show_default="this folder")
]
Json = Annotated[bool, typer.Option("--json", help="For programs.")]
Run = Annotated[str, typer.Argument(help="The run's id, or how it begins.", show_default=False)]
_FOLLOW_SECONDS = 0.3


def launch(
    experiment: Annotated[Path, typer.Argument(help="An experiment file.", show_default=False)],
    sites: Annotated[
        str | None, typer.Option(help="Names, with commas between them. Absent: every registered site.")
    ] = None,
    home: Home = Path(),
    as_json: Json = False,
) -> None:
    """Start a run in the hospitals: they are awaited for federation.roll_call_seconds, and it goes on through any restart."""
    from fedmed_common import bundle
    from fedmed_common.identity import load_signing_key
    from fedmed_common.loading import load_experiment
    from fedmed_server.deployment import checks, runs, status

    server = _server(home)
    loaded = load_experiment(experiment)
    chosen = checks.check_launch(server, loaded, experiment, _names(sites))
    command = shlex.join(["fedmed", *sys.argv[1:]])
    folder = runs.create(server, loaded, chosen, command, load_signing_key(server.signing_key))
    approval = bundle.approval_hash(loaded, bundle.installed_version())
    if as_json:
        _print_json({"run": folder.name, "folder": str(folder), "sites": chosen, "approval": approval})
        return
    typer.echo(f"launched {folder.name} for {', '.join(chosen)}")
    typer.echo(f"sites that approve runs themselves are asked for {approval[:12]}")
    if not status.is_serving(server):
        typer.echo(f"it begins when the server runs: fedmed serve --home {server.path}")


def show_status(
    run: Annotated[str | None, typer.Argument(help="The run's id, or how it begins; absent: all.")] = None,
    home: Home = Path(),
    as_json: Json = False,
) -> None:
    """Show how far the runs are; of one run, also who is late or failing right now."""
    from fedmed_server.deployment import runs, status, tables

    server = _server(home)
    if run is None:
        found = status.all_runs(server)
        _print_json([asdict(one) for one in found]) if as_json else _print(tables.runs_table(found))
        return
    one = status.run_status(server, runs.find(server, run))
    if as_json:
        _print_json(asdict(one))
        return
    _print(*tables.run_page(one))


def show_log(
    run: Run,
    follow: Annotated[
        bool, typer.Option(help="Go on until the run has ended or is interrupted, or Ctrl-C.")
    ] = False,
    home: Home = Path(),
    as_json: Annotated[
        bool, typer.Option("--json", help="For programs: the run's history, a record a line.")
    ] = False,
) -> None:
    """Print what the server says about a run."""
    from fedmed_server.deployment import runs
    from fedmed_server.folders import is_locked

    folder = runs.find(_server(home), run)
    print_from = _print_records_from if as_json else _print_from
    progress, offset = runs.Progress(folder), 0
    while True:
        ended = not is_locked(folder) and progress.update().is_settled(runs.load(folder))
        offset = print_from(folder, offset)
        if not follow or ended:
            return
        time.sleep(_FOLLOW_SECONDS)


def stop(run: Run, home: Home = Path(), as_json: Json = False) -> None:
    """Interrupt a run; 'fedmed resume' goes on with it."""
    from fedmed_server.deployment import runs

    server = _server(home)
    wanted = runs.ask_to_stop(runs.find(server, run))
    if as_json:
        _print_json({"run": wanted.run, "wanted": wanted.wanted})
        return
    typer.echo(f"{wanted.run} is interrupted; 'fedmed resume {wanted.run}' goes on with it")


def show_sites(home: Home = Path(), as_json: Json = False) -> None:
    """Show which sites are connected, and why others are not."""
    from fedmed_server.deployment import status, tables

    found = status.all_sites(_server(home))
    _print_json([asdict(site) for site in found]) if as_json else _print(tables.sites_table(found))


def resume_launched(run: str, home: Path, *, as_json: bool = False) -> bool:
    """Go on with a launched run; whether there is one of that name."""
    from fedmed_common.errors import ConfigError
    from fedmed_server.deployment import runs
    from fedmed_server.deployment.home import ServerHome

    try:
        folder = runs.find(ServerHome(home.absolute()), run)
    except ConfigError:
        return False
    wanted = runs.ask_to_resume(folder)
    if as_json:
        _print_json({"run": wanted.run, "wanted": wanted.wanted})
        return True
    typer.echo(
        f"{wanted.run} goes on as soon as the server runs; 'fedmed status {wanted.run}' shows how far it is"
    )
    return True


def _server(home: Path) -> ServerHome:
    """The server's folder.

    Raises:
        ConfigError: there is no ``server.toml`` in it, or it is wrong.
    """
    from fedmed_common.errors import ConfigError
    from fedmed_server.deployment.home import ServerHome

    server = ServerHome(home.absolute())
    if not server.settings_file.exists():
        raise ConfigError(
            "is not a server's folder: it holds no server.toml",
            file=server.path,
            fix="name the folder that 'fedmed provision' made, with --home or FEDMED_HOME",
        )
    server.settings()
    return server


def _names(sites: str | None) -> tuple[str, ...] | None:
    if sites is None:
        return None
    return tuple(dict.fromkeys(name.strip() for name in sites.split(",") if name.strip()))


def _print_json(document: Any) -> None:
    typer.echo(json.dumps(document, indent=1))


def _print(*parts: Any) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console()
    for part in parts:
        console.print(part, highlight=False, soft_wrap=isinstance(part, Text))


def _print_records_from(folder: Path, offset: int) -> int:
    from fedmed_server import history

    records, offset = history.read_from(folder / history.FILE, offset)
    for record in records:
        typer.echo(record.model_dump_json())
    return offset


def _print_from(folder: Path, offset: int) -> int:
    from fedmed_server.deployment.runs import LOG

    file = folder / LOG
    if not file.exists():
        return offset
    with file.open("rb") as stream:
        stream.seek(offset)
        content = stream.read()
    sys.stdout.write(content.decode(errors="replace"))
    sys.stdout.flush()
    return offset + len(content)
