"""One simulated run from its folder to its report, and the baselines beside it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from fedmed_client.app import INCIDENTS
from fedmed_client.data.cohort import Cohort
from fedmed_client.workbench import COHORTS, SiteHome
from fedmed_common.config import Experiment
from fedmed_common.errors import FedmedError, Interrupted, TrackingAway
from fedmed_common.files import write_atomically
from fedmed_common.metrics import Metrics, merge
from fedmed_server import history
from fedmed_server.app import RunRequest
from fedmed_server.folders import locked
from fedmed_server.history import RunEnded
from fedmed_server.report import COMPARISON, REPORT, Figure, write_report
from fedmed_server.report.told import caveats
from fedmed_server.state import load_state, model_file
from fedmed_server.tracking import BackgroundTracker, track
from fedmed_simulations import runfolder
from fedmed_simulations.checks import check_experiment
from fedmed_simulations.display import (
    Display,
    all_sites,
    comparison_table,
    held_out_sentence,
    outcome_table,
    privacy_sentence,
)
from fedmed_simulations.engines import ENGINES
from fedmed_simulations.federation import drawing, make_homes, pooled_homes, with_one_trainer
from fedmed_simulations.overlays import draw_overlays
from fedmed_simulations.partition.counts import Counts
from fedmed_simulations.partition.picture import split_figure

SITES = ".sites"


def homes_for(experiment: Experiment, folder: Path, baseline: str) -> list[SiteHome]:
    """The sites of a run or of one of its baselines; their working folders lie beside the runs, so that caches are shared."""
    homes = make_homes(
        experiment, check_experiment(experiment, folder / runfolder.EXPERIMENT), folder.parent / SITES
    )
    if baseline == "pooled":
        return pooled_homes(homes)
    if baseline.startswith("local:"):
        return [home for home in homes if home.site.name == baseline.removeprefix("local:")]
    return homes


def prepare(homes: Sequence[SiteHome], experiment: Experiment, console: Console) -> list[Cohort]:
    """Each site's cohort, built before the run, where an error can still name the file: the data are the researcher's.

    Raises:
        DataError: a site's data cannot be used.
    """
    cohorts = []
    with console.status("preparing") as status:
        for home in homes:
            status.update(f"preparing {escape(home.site.name)}")
            cohort, _ = COHORTS.get(home, experiment.order_text())
            for skipped in cohort.skipped:
                console.print(f"[yellow]{escape(home.site.name)}: left out {escape(str(skipped))}[/]")
            cohorts.append(cohort)
    return cohorts


def carry_out(folder: Path, console: Console) -> RunEnded:
    """Run or resume what the folder asks for; ends with the report.

    Raises:
        FedmedError: the run could not end; what was done is kept and can be resumed.
    """
    experiment, plan = runfolder.open_run(folder)
    with locked(folder):
        ended = how_it_ended(folder)
        if ended is None or not (folder / REPORT).exists():
            homes = homes_for(experiment, folder, plan.baseline)
            cohorts = prepare(homes, experiment, console)
            ended = ended or _run_or_say_how_to_resume(folder, experiment, plan, homes, console)
            overlays = draw_overlays(homes, experiment, _best_model(folder)) if experiment.rounds else []
            write_report(folder, figures=[_split(folder, experiment, plan, cohorts), *overlays])
            _complete_tracking(folder, experiment, console)
    if not experiment.rounds:
        return _told_of_survey(folder, ended, console)
    console.print(outcome_table(ended, experiment))
    for sentence in caveats(experiment):
        console.print(escape(sentence), soft_wrap=True, highlight=False)
    records = list(history.read(folder / history.FILE))
    done = [record for record in records if isinstance(record, history.RoundDone)]
    for sentence in (held_out_sentence(records), privacy_sentence(done, experiment)):
        if sentence:
            console.print(escape(sentence), soft_wrap=True, highlight=False)
    colour = "green" if ended.status == "completed" else "yellow"
    best = f"best round {ended.best_round} of {experiment.rounds}"
    told = best if ended.best_round else "no best round: no site told a metric by which rounds are compared"
    console.print(f"[{colour}]{escape(ended.status)}[/]; {told}")
    console.print(f"report: {folder / REPORT}", soft_wrap=True, highlight=False)
    return ended


def _told_of_survey(folder: Path, ended: RunEnded, console: Console) -> RunEnded:
    colour = "green" if ended.status == "completed" else "yellow"
    console.print(f"[{colour}]{escape(ended.status)}[/]")
    console.print(f"data sheet: {folder / REPORT}", soft_wrap=True, highlight=False)
    console.print(f"to go on: fedmed plan {folder}", soft_wrap=True, highlight=False)
    return ended


def carry_out_baseline(folder: Path, baseline: str, console: Console) -> Metrics:
    """Train a baseline of the run in ``folder``, in a run folder of its own; its metrics on the same test patients.

    ``pooled`` is one run. ``local`` is one for each site, tested on that site's own patients.
    """
    experiment, plan = runfolder.open_run(folder)
    names = [home.site.name for home in homes_for(experiment, folder, "")]
    ended = []
    for kind in ["pooled"] if baseline == "pooled" else [f"local:{name}" for name in names]:
        own = folder.with_name(f"{folder.name}.{kind.replace(':', '.')}")
        if not own.exists():
            runfolder.create(own, with_one_trainer(experiment), replace(plan, baseline=kind, baselines=()))
        ended.append(carry_out(own, console))
    return tested_metrics(ended)


def carry_out_with_baselines(folder: Path, console: Console) -> None:
    """The run, then its baselines, then a table of all of them, which goes into the run's report as well."""
    experiment, plan = runfolder.open_run(folder)
    ended = carry_out(folder, console)
    rows = [("federated", tested_metrics([ended]))]
    rows += [(baseline, carry_out_baseline(folder, baseline, console)) for baseline in plan.baselines]
    if len(rows) > 1:
        console.print(comparison_table(rows, experiment))
        comparison = {
            name: {metric: [mean.total, mean.weight] for metric, mean in metrics.items()}
            for name, metrics in rows
        }
        with locked(folder):
            write_atomically(folder / COMPARISON, json.dumps(comparison, indent=2).encode())
            write_report(folder)
            _complete_tracking(folder, experiment, console)


def tested_metrics(ended: Sequence[RunEnded]) -> Metrics:
    """The test metrics of one run, or of several that tested disjoint sites, with each run's best model."""
    return merge(all_sites(run.test.get("best", run.test.get("last", ()))) for run in ended)


def _run_or_say_how_to_resume(
    folder: Path, experiment: Experiment, plan: runfolder.Plan, homes: Sequence[SiteHome], console: Console
) -> RunEnded:
    try:
        with incidents_told(homes, console):
            return _run(folder, experiment, plan, homes, console)
    except (KeyboardInterrupt, Interrupted):
        raise Interrupted(f"stopped; 'fedmed resume {folder}' goes on") from None


@contextmanager
def incidents_told(homes: Sequence[SiteHome], console: Console) -> Iterator[None]:
    """Where a run fails, say what its sites have written down meanwhile."""
    logs = {home.site.name: home.folder / INCIDENTS for home in homes}
    before = {site: log.stat().st_size if log.exists() else 0 for site, log in logs.items()}
    try:
        yield
    except Interrupted:
        raise
    except FedmedError:
        for site, log in logs.items():
            if log.exists() and (added := log.read_bytes()[before[site] :].decode(errors="replace")):
                console.print(
                    f"[yellow]{site}: {escape(_last_error(added))}; all of it is in {escape(str(log))}[/]",
                    soft_wrap=True,
                )
        raise


def _last_error(log: str) -> str:
    """What the last traceback of a site's log says at its end, without the exception's type where it is one of ours."""
    last = log.rstrip().splitlines()
    start = max((place for place, line in enumerate(last) if re.match(r"[\w.]+(: |$)", line)), default=0)
    told = " ".join(line.strip() for line in last[start:])
    return re.sub(r"^fedmed_common\.errors\.\w+: ", "", told)


def _run(
    folder: Path, experiment: Experiment, plan: runfolder.Plan, homes: Sequence[SiteHome], console: Console
) -> RunEnded:
    state = load_state(folder)
    title = plan.baseline or "federation"
    with (
        Display(experiment, state.round if state else 0, title, console) as display,
        BackgroundTracker(folder, experiment, uri=experiment.tracking.uri),
    ):
        watched = [replace(home, on_step=display.on_step) for home in homes]
        request = RunRequest(
            experiment=experiment,
            folder=folder,
            command=plan.command,
            sites=len(homes),
            watch=display.watch,
            on_round=display.on_round,
            on_loaded=display.on_loaded,
        )
        ENGINES[plan.engine](watched, request, plan.resources)
    ended = how_it_ended(folder)
    if ended is None:
        raise FedmedError(
            f"{folder}: the engine stopped before the run ended; 'fedmed resume {folder}' goes on"
        )
    return ended


def _best_model(folder: Path) -> Path:
    best = model_file(folder, "best")
    return best if best.exists() else model_file(folder, "last")


def _split(folder: Path, experiment: Experiment, plan: runfolder.Plan, cohorts: Sequence[Cohort]) -> Figure:
    """The picture of who has what. What the sites were drawn from is the federation's, not a baseline's."""
    sites = check_experiment(experiment, folder / runfolder.EXPERIMENT)
    drawn = None if plan.baseline else drawing(experiment, sites, folder.parent / SITES)
    return split_figure(Counts.of(cohorts, drawn))


def _complete_tracking(folder: Path, experiment: Experiment, console: Console) -> None:
    try:
        track(folder, experiment, uri=experiment.tracking.uri)
    except TrackingAway as away:
        console.print(
            f"[yellow]MLflow is away ({escape(str(away))}); nothing is lost: 'fedmed track {escape(str(folder))}' catches up[/]"
        )


def how_it_ended(folder: Path) -> RunEnded | None:
    """How the run ended, where it did: a run that was interrupted or failed has not."""
    last = None
    for record in history.read(folder / history.FILE):
        last = record
    if isinstance(last, RunEnded) and last.status.startswith(("completed", "degraded")):
        return last
    return None
