"""``fedmed compare``."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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

if TYPE_CHECKING:
    from rich.console import Console

    from fedmed_common.config import Experiment
    from fedmed_simulations.compare.settings import Comparison
    from fedmed_simulations.compare.study import Study


def compare(
    file: Annotated[Path, typer.Argument(help="A comparison file: an experiment, seeds, candidates.")],
    folder: Annotated[
        Path, typer.Option(help="Where results and runs go; comparisons in one folder share their runs.")
    ] = Path("comparisons"),
    seeds: Annotated[
        str | None,
        typer.Option(
            help="As 1,2,3: in place of the file's seeds. Runs of more seeds are added to those there."
        ),
    ] = None,
    engine: Annotated[Engine, typer.Option(help=ENGINE_HELP)] = "inline",
    workers: Annotated[int, typer.Option(min=0, help=WORKERS_HELP)] = 0,
    ray_address: Annotated[str, typer.Option(envvar=ADDRESS_VARIABLE, help=ADDRESS_HELP)] = "",
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Prepare the data, list the budgets and the runs, and train nothing."),
    ] = False,
) -> None:
    """Compare strategies fairly: same steps, same budget for settings, same patients; run it again to go on.

    Local-only training, pooled training, FedAvg, and FedAvg with each candidate's loss and sampler are always compared too.
    """
    from fedmed_simulations.compare.settings import load_comparison

    resources = Resources(workers=workers, address=ray_address)
    check_resources(engine, resources)
    comparison = load_comparison(file)
    if seeds is not None:
        comparison = comparison.model_copy(update={"seeds": _seeds(seeds)})

    from rich.console import Console

    from fedmed_common.errors import Interrupted
    from fedmed_server.folders import locked
    from fedmed_simulations.compare import carry, tables
    from fedmed_simulations.compare.results import results
    from fedmed_simulations.compare.write import write_results

    console = Console()
    study = prepared(comparison, file, folder.absolute(), (engine, resources), console)
    if dry_run:
        console.print(tables.budget_table(study))
        for line in tables.run_lines(study):
            console.print(line, soft_wrap=True, highlight=False, markup=False)
        return
    own = folder.absolute() / comparison.name
    own.mkdir(parents=True, exist_ok=True)
    with locked(own):
        try:
            outcomes, choices = carry.carry_out(study, own, console)
        except (Interrupted, KeyboardInterrupt):
            raise Interrupted("stopped; the same command goes on") from None
        found = results(study, outcomes, choices, carry.versions(study, own))
        write_results(found, own)
    console.print(tables.choices_table(choices))
    console.print(tables.scores_table(found))
    console.print(tables.differences_table(found))
    for sentence in found.notes:
        console.print(sentence, soft_wrap=True, highlight=False, markup=False)
    console.print(
        f"written to {own}: comparison.md, .json and .csv, figures/", soft_wrap=True, highlight=False
    )


def prepared(
    comparison: Comparison, file: Path, folder: Path, where: tuple[Engine, Resources], console: Console
) -> Study:
    """All that is known before anything is trained; the data are prepared. ``where``: the engine, and what it may take.

    Raises:
        ConfigError: names the file, the field and the fix.
        DataError: a site's data cannot be used.
    """
    from fedmed_common.loading import load_experiment
    from fedmed_server.names import check_names, check_start
    from fedmed_simulations.cli import experiment_file
    from fedmed_simulations.compare.budget import competitors, place_of
    from fedmed_simulations.compare.runs import Runner
    from fedmed_simulations.compare.sites import Sites
    from fedmed_simulations.compare.study import Study
    from fedmed_simulations.run import SITES

    beside = file.parent / comparison.experiment
    path = beside if beside.exists() or beside.suffix else experiment_file(comparison.experiment)
    base = load_experiment(path)
    rows = competitors(comparison, base, file)
    checked: list[object] = []
    for row in rows:
        for configuration in row.configurations:
            try:
                check_names(configuration.experiment, file)
                check_start(configuration.experiment, file)
                _check_network(configuration.experiment, checked)
            except ConfigError as error:
                field = f"{place_of(row)}: {error.field}"
                raise ConfigError(error.problem, file=file, field=field, fix=error.fix) from None
    sites = Sites(
        base=base,
        file=path,
        folder=folder / "runs" / SITES,
        console=console,
        first_seed=comparison.seeds[0],
        test_federation=comparison.test.federation if comparison.test else None,
        federations=comparison.federations,
    )
    trainers = len(sites.survey(base.model_copy(update={"seed": comparison.seeds[0]})))
    runner = Runner(
        sites=sites,
        folder=folder / "runs",
        engine=where[0],
        resources=where[1],
        command=shlex.join(["fedmed", *sys.argv[1:]]),
        times=trainers if comparison.pooled_steps == "total" else 1,
        console=console,
    )
    return Study(comparison=comparison, base=base, competitors=rows, runner=runner)


def _check_network(experiment: Experiment, checked: list[object]) -> None:
    """Before anything is trained: the last of many runs must not be the one that says that the recipe cannot have the network.
    ``checked``: recipes with networks that need not be tried again, to which this one is added.

    Raises:
        ConfigError: names the field and the fix.
    """
    from fedmed_common.models import build_model
    from fedmed_strategies.presets import recipe_of
    from fedmed_strategies.validity import refuse_network

    recipe = recipe_of(experiment)
    what = recipe, experiment.model, experiment.task, experiment.data, experiment.transfer
    if what not in checked:
        refuse_network(recipe, experiment, build_model(experiment))
        checked.append(what)


def _seeds(text: str) -> tuple[int, ...]:
    try:
        seeds = tuple(int(part) for part in text.split(","))
    except ValueError:
        seeds = ()
    if not seeds or len(set(seeds)) != len(seeds) or min(seeds) < 0:
        raise ConfigError(f"'{text}' are no seeds", field="--seeds", fix="write them as 1,2,3, each once")
    return seeds
