"""``fedmed simulate`` and ``fedmed resume``."""

from __future__ import annotations

import difflib
import json
import shlex
import sys
from contextlib import nullcontext
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from fedmed_common.errors import ConfigError
from fedmed_simulations.resources import (
    ADDRESS_HELP,
    ADDRESS_VARIABLE,
    ENGINE_HELP,
    WORKERS_HELP,
    Engine,
    Resources,
    check_resources,
)


class Baseline(StrEnum):
    """What a federation is compared with."""

    pooled = "pooled"
    local = "local"


SHIPPED = Path(__file__).parent / "experiments"


def simulate(  # noqa: PLR0913, PLR0917
    experiment: Annotated[
        str,
        typer.Argument(help="An experiment file, or the name of one that ships with fedmed, as 'nuclei'."),
    ],
    runs: Annotated[Path, typer.Option(help="Folder for runs, caches and the MLflow store.")] = Path("runs"),
    engine: Annotated[Engine, typer.Option(help=ENGINE_HELP)] = "inline",
    workers: Annotated[int, typer.Option(min=0, help=WORKERS_HELP)] = 0,
    ray_address: Annotated[str, typer.Option(envvar=ADDRESS_VARIABLE, help=ADDRESS_HELP)] = "",
    baseline: Annotated[
        list[Baseline] | None,
        typer.Option(
            help="Also train, with as many steps as one site takes: on all data pooled; at each site alone."
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, max=2**63 - 1, help="In place of the experiment's seed.")
    ] = None,
    tracking_uri: Annotated[
        str | None, typer.Option(help="MLflow address; absent: SQLite in the runs folder.")
    ] = None,
    profile: Annotated[
        bool, typer.Option("--profile", help="Tell where the time went, and write profile.html. Inline only.")
    ] = False,
) -> None:
    """Run a whole federation on this machine, through the apps that hospitals run."""
    from fedmed_common.loading import load_experiment
    from fedmed_server.names import check_start
    from fedmed_simulations.checks import check_experiment

    if profile and engine != "inline":
        raise ConfigError(
            "--profile looks at one process", fix="leave --engine out, so that all sites work in it"
        )
    resources = Resources(workers=workers, address=ray_address)
    check_resources(engine, resources)
    file = experiment_file(experiment)
    loaded = load_experiment(file)
    check_experiment(loaded, file)
    check_start(loaded, file)

    from rich.console import Console

    from fedmed_server.folders import new_run_id
    from fedmed_simulations import runfolder
    from fedmed_simulations.profiling import profiled
    from fedmed_simulations.run import carry_out_with_baselines

    changes: dict[str, object] = {} if seed is None else {"seed": seed}
    if tracking_uri is not None:
        changes["tracking"] = loaded.tracking.model_copy(update={"uri": tracking_uri})
    loaded = loaded.model_copy(update=changes)
    command = shlex.join(["fedmed", *sys.argv[1:]])
    folder = runs.absolute() / new_run_id(loaded)
    baselines = tuple(dict.fromkeys(choice.value for choice in baseline or ()))
    plan = runfolder.Plan(engine=engine, command=command, baselines=baselines, resources=resources)
    runfolder.create(folder, loaded, plan)
    console = Console()
    with profiled(folder, console) if profile else nullcontext():
        carry_out_with_baselines(folder, console)


def resume(
    run: Annotated[Path, typer.Argument(help="The run's folder; of a run in the hospitals, its id as well.")],
    home: Annotated[
        Path, typer.Option(envvar="FEDMED_HOME", help="The server's folder, for a run in the hospitals.")
    ] = Path(),
    engine: Annotated[Engine | None, typer.Option(help=f"{ENGINE_HELP} Absent: as it began.")] = None,
    workers: Annotated[int | None, typer.Option(min=0, help=WORKERS_HELP)] = None,
    ray_address: Annotated[str | None, typer.Option(envvar=ADDRESS_VARIABLE, help=ADDRESS_HELP)] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="For programs. How a simulation goes is then told on stderr.")
    ] = False,
) -> None:
    """Go on with a run, and its baselines, that was interrupted or killed; it ends as if it had never stopped."""
    from fedmed_server.deployment.cli import resume_launched
    from fedmed_simulations import runfolder

    if not (run / runfolder.PLAN).exists() and resume_launched(str(run), home, as_json=as_json):
        return

    from rich.console import Console

    from fedmed_server import history
    from fedmed_server.folders import locked
    from fedmed_simulations.run import carry_out_with_baselines

    if (run / runfolder.PLAN).exists():
        with locked(run.absolute()):
            runfolder.move(run.absolute(), engine, workers, ray_address)
    carry_out_with_baselines(run.absolute(), Console(stderr=as_json))
    if as_json:
        *_, last = history.read(run / history.FILE)
        status = last.status if isinstance(last, history.RunEnded) else ""
        typer.echo(json.dumps({"run": run.absolute().name, "status": status}, indent=1))


def experiment_file(name: str) -> Path:
    """The file of that name, or the experiment that ships under it.

    Raises:
        ConfigError: neither is there.
    """
    shipped = {file.stem: file for file in sorted(SHIPPED.glob("*.toml"))}
    if Path(name).exists() or Path(name).suffix:
        return Path(name)
    if name not in shipped:
        near = difflib.get_close_matches(name, shipped, n=1)
        fix = f"did you mean '{near[0]}'?" if near else f"name a file, or one of {', '.join(shipped)}"
        raise ConfigError("no such file, and none that ships is called so", file=name, fix=fix)
    return shipped[name]
