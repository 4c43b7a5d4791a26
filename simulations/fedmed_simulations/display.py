"""What the researcher sees while a simulation runs, and the table at its end."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from fedmed_common.config import Experiment
from fedmed_common.metrics import Metrics, class_mean, merge
from fedmed_server.history import (
    Line,
    RoundDone,
    RunEnded,
    RunStarted,
    SiteResult,
    epsilon_by_site,
    rounds_by_site,
)
from fedmed_strategies.presets import recipe_of

_IN_WORDS = {
    "false_positive": "painted where absent",
    "sensitivity": "sensi-\ntivity",
    "specificity": "speci-\nficity",
}


_MOST_NAMES, _MOST_COLUMNS = 12, 12
_OVER_SITES = ("lowest\nsite", "median\nsite", "highest\nsite", "sites")


class Display:
    """Two bars: the run's rounds with the time left, and the step of the site at work. Finished rounds stay above."""

    def __init__(self, experiment: Experiment, done: int, title: str, console: Console) -> None:
        self._experiment = experiment
        self._console = console
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self._rounds: TaskID = self._progress.add_task(
            f"{title}: rounds", total=experiment.rounds, completed=done
        )
        self._site: TaskID = self._progress.add_task("connecting", total=experiment.train.steps)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def on_loaded(self, sentences: Sequence[str]) -> None:
        """The run's weights start from a file."""
        for sentence in sentences:
            self._console.print(escape(sentence), soft_wrap=True, highlight=False)

    def watch(self, site: str, phase: str) -> None:
        """A site is awaited, or has answered."""
        if phase == "awaited":
            self._progress.update(self._site, description=f"{site}: at work", completed=0)
        elif phase not in {"asked", "ok"}:
            self._console.print(f"[yellow]{site}: {phase}[/]")

    def on_step(self, site: str, step: int) -> None:
        """A site has taken a training step."""
        self._progress.update(self._site, description=f"{site}: step", completed=step)

    def on_round(self, record: RoundDone) -> None:
        """A round is done."""
        self._progress.update(self._rounds, completed=record.round)
        loss = merge(result.means() for result in record.train).get("loss")
        parts = [f"round {record.round:>3}/{self._experiment.rounds}"]
        if loss is not None:
            parts.append(f"training loss {loss.value:.3f}")
        if record.criterion is not None:
            star = "  [green]best so far[/]" if record.is_best else ""
            parts.append(f"validation {self._experiment.federation.best} {record.criterion:.3f}{star}")
        spent = epsilon_by_site([record])
        if spent:
            parts.append(f"epsilon {max(spent.values()):.2f}")
        if record.clock is not None:
            parts.append(f"clock {record.clock:.0f}")
        parts.append(f"{record.seconds['total']:.1f} s")
        self._console.print("  ".join(parts), highlight=False)


def _some(names: Iterable[str]) -> str:
    """The first few of what may be many."""
    listed = list(names)
    more = len(listed) - _MOST_NAMES
    return ", ".join(listed[:_MOST_NAMES]) + (f" and {more:,} more" if more > 0 else "")


def held_out_sentence(records: Iterable[Line]) -> str:
    """Which sites' scores have noise on them, or stayed there."""
    ways: dict[str, list[str]] = {}
    starts = [record for record in records if isinstance(record, RunStarted)]
    for facts in starts[-1].sites if starts else ():
        ways.setdefault(facts.held_out, []).append(facts.name)
    noised, kept = (_some(ways.get(way, ())) for way in ("noised", "kept"))
    said = [f"scores with noise on them, which at few patients say little: {noised}"] if noised else []
    return "; ".join([*said, f"scores that stayed at the site: {kept}"] if kept else said)


def privacy_sentence(rounds: Iterable[RoundDone], experiment: Experiment) -> str:
    """What the run has cost each training patient, where it trained privately, and each site, with central privacy."""
    done = list(rounds)
    spent, said = epsilon_by_site(done), []
    if experiment.privacy is not None and spent:
        each = _some(f"{site} {epsilon:.2f}" for site, epsilon in spent.items())
        said.append(
            f"epsilon {max(spent.values()):.2f} of {experiment.privacy.epsilon:g} spent at delta {experiment.privacy.delta:g} "
            f"({each})"
        )
    central = recipe_of(experiment).central_privacy
    if central is not None and done:
        most = max(rounds_by_site(done).values(), default=0)
        said.append(
            f"epsilon {central.epsilon(most):.2f} for a whole site, at delta {central.delta:g}, over {most} rounds"
        )
    return "; ".join(said)


def outcome_table(ended: RunEnded, experiment: Experiment) -> Table:
    """The leading metric by class and site on held-out test patients, of the best model where there is one, and the others.

    Of many sites it has the lowest, the median and the highest in the place of each."""
    lead, *others = [score for score in experiment.task.scores if score.by_class]
    model = "best" if "best" in ended.test else "last"
    results = [result for result in ended.test.get(model, ()) if result.outcome == "ok"]
    whom = "with it, or without" if lead.paired else ""
    table = Table(
        title=f"{lead.title} on held-out test patients, {model} model; in brackets: patients {whom}".rstrip(),
        title_justify="left",
        show_edge=False,
        pad_edge=False,
    )
    table.add_column("class", no_wrap=True)
    few = len(results) <= _MOST_COLUMNS
    for heading in [result.site for result in results] if few else _OVER_SITES:
        table.add_column(heading, justify="right")
    table.add_column(
        "all\nsites" if lead.paired else "all sites", justify="right", style="bold", no_wrap=True
    )
    shown = [score for score in others if score.over != "all" and not score.needs]
    for score in shown:
        heading = _IN_WORDS.get(score.name, score.name)
        table.add_column(heading, justify="right", max_width=13, no_wrap=lead.paired)
    together = merge(result.means() for result in results)
    for name in experiment.task.classes:
        by_site = [result.means() for result in results]
        key = f"{lead.name}/{name}"
        cells = [_value(means, key) for means in by_site] if few else _over(by_site, key)
        rest = [_cell(together, f"{score.name}/{name}") for score in shown]
        over_all = (_value if lead.paired else _cell)(together, f"{lead.name}/{name}")
        table.add_row(name, *cells, over_all, *rest)
    return table


def _over(by_site: Sequence[Metrics], name: str) -> list[str]:
    """The lowest, the median and the highest value of those sites that have one, and how many these are."""
    found = sorted(means[name].value for means in by_site if name in means and means[name].weight)
    if not found:
        return ["-"] * len(_OVER_SITES)
    values = (found[0], statistics.median(found), found[-1])
    return [*(f"{value:.3f}" for value in values), f"{len(found):,}"]


def comparison_table(rows: Sequence[tuple[str, Metrics]], experiment: Experiment) -> Table:
    """The federation beside its baselines, each on the same held-out test patients."""
    lead = experiment.task.scores[0]
    whom = "patients who show the class" if lead.over == "present" else "the sites by their patients"
    table = Table(title=f"Held-out test patients: {lead.title}, mean over {whom}", title_justify="left")
    table.add_column("class")
    for name, _ in rows:
        table.add_column(name, justify="right")
    for klass in experiment.task.classes:
        table.add_row(klass, *(_cell(metrics, f"{lead.name}/{klass}") for _, metrics in rows))
    table.add_section()
    means = [class_mean(metrics, lead.name) for _, metrics in rows]
    table.add_row(
        "mean over classes", *("-" if math.isnan(value) else f"{value:.3f}" for value in means), style="bold"
    )
    return table


def all_sites(results: Sequence[SiteResult]) -> Metrics:
    """All sites' test metrics together."""
    return merge(result.means() for result in results)


def _cell(metrics: Metrics, name: str) -> str:
    mean = metrics.get(name)
    return f"{mean.value:.3f} ({mean.weight:.0f})" if mean is not None and mean.weight else "-"


def _value(metrics: Metrics, name: str) -> str:
    return _cell(metrics, name).partition(" ")[0]
