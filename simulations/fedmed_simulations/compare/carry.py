"""A comparison from its runs to what was measured: tuning runs, the choices, then the runs that count."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from fedmed_common.errors import CheckpointError
from fedmed_common.files import write_atomically
from fedmed_server.history import RoundDone
from fedmed_simulations.compare import measured
from fedmed_simulations.compare.columns import Classes, Outcome, Scored, scored
from fedmed_simulations.compare.plan import last_rounds
from fedmed_simulations.compare.runs import Run, Runner
from fedmed_simulations.compare.statistics import Outcomes
from fedmed_simulations.compare.study import Choice, Study, told

CHOICES, VERSIONS = "choices.json", "versions.json"


def carry_out(
    study: Study, folder: Path, console: Console
) -> tuple[Mapping[str, Outcomes], tuple[Choice, ...]]:
    """Everything that is not done yet; what was measured of each competitor by seed, and what it had chosen before.

    Raises:
        FedmedError: a run could not end.
        Interrupted: it was stopped; the same goes on.
    """
    study.check_test_patients()
    arms = study.arms
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bars:
        tuning = [run for arm in arms for seeds in study.tuning(arm) for run in seeds]
        _carry_out_all("tuning", tuning, study.runner, bars)
        choices = tuple(study.choose(arm) for arm in arms)
        chosen = json.dumps([told(choice) for choice in choices], indent=1)
        write_atomically(folder / CHOICES, chosen.encode())
        versions(study, folder)
        final = [run for choice in choices for run in study.final(choice)]
        _carry_out_all("comparing", final, study.runner, bars)
    return outcomes(study, choices), choices


def versions(study: Study, folder: Path) -> int:
    """How many different comparisons of this name have come as far as measuring test patients, this one included."""
    asked = study.comparison.model_dump_json() + study.base.order_text()
    digest = hashlib.sha256(asked.encode()).hexdigest()
    file = folder / VERSIONS
    known: list[str] = json.loads(file.read_bytes()) if file.exists() else []
    if digest not in known:
        known.append(digest)
        write_atomically(file, json.dumps(known, indent=1).encode())
    return len(known)


def outcomes(study: Study, choices: Sequence[Choice]) -> Mapping[str, Outcomes]:
    """What the runs that count have measured.

    Raises:
        CheckpointError: two competitors were not measured on the same patients.
    """
    classes = study.classes()
    found: dict[str, dict[int, dict[str, Scored]]] = {}
    for choice in choices:
        by_seed = found.setdefault(choice.arm.competitor.name, {})
        for run in study.final(choice):
            by_seed.setdefault(run.seed, {}).update(_outcome(run, classes))
    first = _patients(next(iter(found.values())))
    for name, by_seed in found.items():
        if _patients(by_seed) != first:
            raise CheckpointError(
                f"'{name}' was measured on other patients than the others: delete {study.runner.folder}"
            )
    return found


def _outcome(run: Run, classes: Classes) -> Outcome:
    rounds = [measured.read(run.folder, number) for number in last_rounds(run.experiment)]
    return {site: scored([one[site] for one in rounds], classes) for site in rounds[0]}


def _patients(by_seed: Mapping[int, Outcome]) -> dict[int, dict[str, tuple[int, ...]]]:
    return {seed: {site: one.patients for site, one in outcome.items()} for seed, outcome in by_seed.items()}


def _carry_out_all(what: str, runs: Sequence[Run], runner: Runner, bars: Progress) -> None:
    """What of the runs is left to do, under one bar for them and one for the rounds of the run at work; done runs stay above."""
    unique = list({run.folder: run for run in reversed(runs)}.values())[::-1]
    todo = [run for run in unique if not run.is_done()]
    if len(todo) < len(unique):
        bars.console.print(f"{what}: {len(unique) - len(todo)} of {len(unique)} runs are there already")
    bar = bars.add_task(what, total=len(unique), completed=len(unique) - len(todo))
    for run in todo:
        rounds = bars.add_task(escape(run.text), total=run.experiment.rounds)
        runner.carry_out(run, _follow(bars, rounds))
        bars.remove_task(rounds)
        bars.advance(bar)
        line = f"{escape(run.text)}: {run.validation():.3f} on validation"
        bars.console.print(line, soft_wrap=True, highlight=False)


def _follow(bars: Progress, task: TaskID) -> Callable[[RoundDone], None]:
    return lambda record: bars.update(task, completed=record.round)
