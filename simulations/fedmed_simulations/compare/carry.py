"""A comparison from its file to what was measured: tuning runs, the choices, then the runs that count."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from fedmed_common.config import Experiment
from fedmed_common.errors import CheckpointError, DataError, FedmedError
from fedmed_common.files import write_atomically
from fedmed_common.metrics import score_called
from fedmed_server.history import RoundDone
from fedmed_simulations.compare import measured
from fedmed_simulations.compare.columns import Classes, Outcome, Scored, scored, thirds
from fedmed_simulations.compare.plan import Arm, Competitor, Configuration, arms, last_rounds
from fedmed_simulations.compare.runs import Run, Runner
from fedmed_simulations.compare.settings import Comparison
from fedmed_simulations.compare.statistics import Outcomes

CHOICES, VERSIONS = "choices.json", "versions.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What an arm tried, and what it took. ``scores``: validation by configuration; empty where there was nothing to choose."""

    arm: Arm
    configuration: Configuration
    scores: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """A comparison with its competitors, ready to be carried out."""

    comparison: Comparison
    base: Experiment
    competitors: tuple[Competitor, ...]
    runner: Runner

    @property
    def budget(self) -> int:
        """How many configurations each competitor tries."""
        return len(self.competitors[0].configurations)

    @property
    def arms(self) -> tuple[Arm, ...]:
        """All that is tuned and trained on its own."""
        sites = self.runner.sites.survey(self._under(self.comparison.seeds[0]))
        return tuple(arm for competitor in self.competitors for arm in arms(competitor, sites))

    def tuning(self, arm: Arm) -> list[list[Run]]:
        """Its runs on validation patients: for each configuration one a seed; none where there is nothing to choose."""
        if self.budget == 1:
            return []
        return [
            [self.runner.run(arm, configuration, seed, final=False) for seed in self.comparison.tuned_under]
            for configuration in arm.competitor.configurations
        ]

    def final(self, choice: Choice) -> list[Run]:
        """The runs of an arm that count."""
        return [
            self.runner.run(choice.arm, choice.configuration, seed, final=True)
            for seed in self.comparison.seeds
        ]

    def choose(self, arm: Arm) -> Choice:
        """The configuration with the best validation over the tuning seeds, of equal ones the first.

        Raises:
            FedmedError: none has a value.
        """
        runs = self.tuning(arm)
        if not runs:
            return Choice(arm=arm, configuration=arm.competitor.configurations[0])
        scores = tuple(sum(run.validation() for run in seeds) / len(seeds) for seeds in runs)
        metric = score_called(self.base.federation.best)
        sign = -1.0 if metric is not None and metric.better == "lower" else 1.0
        ranked = [-math.inf if math.isnan(score) else sign * score for score in scores]
        if max(ranked) == -math.inf:
            raise FedmedError(
                f"{arm.label}: none of its configurations has a '{self.base.federation.best}' on validation patients in each of "
                "the last evaluation rounds\n  fix: more validation patients, or a smaller policy.least_patients at the sites"
            )
        best = ranked.index(max(ranked))
        return Choice(arm=arm, configuration=arm.competitor.configurations[best], scores=scores)

    def classes(self) -> Classes:
        """The classes and their groups, as the file says or in thirds; more seeds do not change them."""
        given = self.comparison.groups
        groups = thirds(self.presence()) if given is None else given.model_dump()
        return Classes(names=self.base.task.classes, groups=groups, lead=self.base.task.scores[0])

    def presence(self) -> dict[str, float]:
        """By class: training patients of all sites who show it, mean over the tuning seeds."""
        seeds = self.comparison.tuned_under
        return {name: count / len(seeds) for name, count in self.runner.sites.presence(seeds).items()}

    def check_test_patients(self) -> None:
        """Whether there is anybody to test on.

        Raises:
            DataError: not under every seed.
        """
        for seed in self.comparison.seeds:
            if not sum(one.tested for one in self.runner.sites.survey(self._under(seed)).values()):
                raise DataError(
                    f"no site has a test patient under seed {seed}\n  fix: a larger data.splits.test, or [test] in the comparison"
                )

    def _under(self, seed: int) -> Experiment:
        return self.base.model_copy(update={"seed": seed})


def carry_out(study: Study, folder: Path, console: Console) -> tuple[dict[str, Outcomes], tuple[Choice, ...]]:
    """Everything that is not done yet; what was measured of each competitor by seed, and what it had chosen before.

    Raises:
        FedmedError: a run could not end.
        Interrupted: it was stopped; the same goes on.
    """
    study.check_test_patients()
    every = study.arms
    with _Progress(console) as progress:
        progress.runs(
            "tuning", [run for arm in every for seeds in study.tuning(arm) for run in seeds], study.runner
        )
        choices = tuple(study.choose(arm) for arm in every)
        write_atomically(
            folder / CHOICES, json.dumps([told(choice) for choice in choices], indent=1).encode()
        )
        versions(study, folder)
        progress.runs("comparing", [run for choice in choices for run in study.final(choice)], study.runner)
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


def outcomes(study: Study, choices: Sequence[Choice]) -> dict[str, Outcomes]:
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
    return {name: dict(by_seed) for name, by_seed in found.items()}


def told(choice: Choice) -> dict[str, Any]:
    """A choice as JSON."""
    configurations = choice.arm.competitor.configurations
    scores = choice.scores or (math.nan,) * len(configurations)
    return {
        "competitor": choice.arm.label,
        "chosen": dict(choice.configuration.settings),
        "tried": [
            {"settings": dict(one.settings), "validation": None if math.isnan(score) else score}
            for one, score in zip(configurations, scores, strict=True)
        ],
        "filled": choice.arm.competitor.filled,
    }


def _outcome(run: Run, classes: Classes) -> Outcome:
    rounds = [measured.read(run.folder, number) for number in last_rounds(run.experiment)]
    return {site: scored([one[site] for one in rounds], classes) for site in rounds[0]}


def _patients(by_seed: Mapping[int, Outcome]) -> dict[int, dict[str, tuple[int, ...]]]:
    return {seed: {site: one.patients for site, one in outcome.items()} for seed, outcome in by_seed.items()}


class _Progress(AbstractContextManager["_Progress"]):
    """Two bars: the runs, and the rounds of the one at work. Finished runs stay above."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            transient=True,
        )

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def runs(self, what: str, runs: Sequence[Run], runner: Runner) -> None:
        """Carry out what of the runs is left to do."""
        unique = list({run.folder: run for run in reversed(runs)}.values())[::-1]
        todo = [run for run in unique if not run.is_done()]
        if len(todo) < len(unique):
            self._console.print(f"{what}: {len(unique) - len(todo)} of {len(unique)} runs are there already")
        bar = self._bars.add_task(what, total=len(unique), completed=len(unique) - len(todo))
        for run in todo:
            rounds = self._bars.add_task(escape(run.text), total=run.experiment.rounds)
            runner.carry_out(run, self._follow(rounds))
            self._bars.remove_task(rounds)
            self._bars.advance(bar)
            self._console.print(
                f"{escape(run.text)}: {run.validation():.3f} on validation", soft_wrap=True, highlight=False
            )

    def _follow(self, task: Any) -> Callable[[RoundDone], None]:
        return lambda record: self._bars.update(task, completed=record.round)
