"""The report's tables: from a run's history to rows that a template can lay out. Nothing here knows HTML."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from fedmed_common.metrics import Mean, Metrics, Score, class_mean
from fedmed_server.history import SiteFacts, SiteResult
from fedmed_server.report.source import RunHistory, in_order, merged

ENOUGH_PATIENTS = 10
"""A class with fewer test patients is no part of the headline: the standard error of its mean would exceed 0.05 to 0.1.

Where a metric compares those who show a class with those who do not, either group needs as many."""

MOST_SITES = 40
"""So many sites are shown one by one; of more, those with the lowest, the middle and the highest scores."""
_MOST_COLUMNS = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """The patients that the headline is about. ``split``: 'test', or 'validation' while the run has no test yet."""

    split: Literal["test", "validation"]
    model: str
    round: int
    results: tuple[SiteResult, ...]
    metrics: Metrics

    @property
    def patients(self) -> int:
        """How many were measured."""
        return sum(result.patients for result in self.results if result.outcome == "ok")


@dataclass(frozen=True, slots=True, kw_only=True)
class Presence:
    """Training patients who show a class. ``hiding``: sites that keep a small count to themselves."""

    patients: int
    hiding: int
    annotating: int
    sites: int

    @property
    def text(self) -> str:
        """As '12', or '12+' where a site hides a count."""
        return f"{self.patients}+" if self.hiding else str(self.patients)


@dataclass(frozen=True, slots=True, kw_only=True)
class Groups:
    """Measured patients who show a class, and where the task's metrics need them too, those who do not (else None)."""

    showing: float
    others: float | None

    @property
    def least(self) -> float:
        """The smaller group, on which a claim stands."""
        return self.showing if self.others is None else min(self.showing, self.others)

    @property
    def enough(self) -> bool:
        """Whether a claim can stand on them."""
        return self.least >= ENOUGH_PATIENTS

    @property
    def text(self) -> str:
        """As '12', or '12 and 30 without it'."""
        return (
            f"{self.showing:g}" if self.others is None else f"{self.showing:g} and {self.others:g} without it"
        )


def groups(metrics: Metrics, name: str, scores: Sequence[Score]) -> Groups:
    """The patients behind the metrics of a class, as their weights count them."""

    def weight(over: str) -> float:
        found = (metrics.get(f"{score.name}/{name}") for score in scores if score.over == over)
        return next((mean.weight for mean in found if mean is not None), 0.0)

    return Groups(showing=weight("present"), others=weight("absent") if scores[0].paired else None)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassRow:
    """One class over all sites: its metrics by name, and among them the one that leads the task."""

    name: str
    presence: Presence
    values: Mapping[str, Mean]
    groups: Groups
    lead: Mean | None

    @property
    def enough(self) -> bool:
        """Whether the class counts in the headline."""
        return self.lead is not None and self.groups.enough

    @property
    def wrongly(self) -> Mean | None:
        """Share of the patients who do not show the class in whom it was predicted all the same."""
        specificity = self.values.get("specificity")
        if specificity is not None:
            return Mean(specificity.weight - specificity.total, specificity.weight)
        return self.values.get("false_positive")


@dataclass(frozen=True, slots=True, kw_only=True)
class Headline:
    """The mean over the classes with enough patients, and the others by name."""

    value: float
    counted: tuple[str, ...]
    few: tuple[ClassRow, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """``kind``: value, few, vacant, unannotated, unreported, silent. ``share``: 0..1 for the shading of a value."""

    kind: str
    text: str
    note: str = ""
    share: float = 0.0

    @property
    def shade(self) -> float:
        """How dark: the upper half of the scale, where most scores lie, gets most of the ramp."""
        return float(min(max(self.share, 0.0), 1.0) ** 1.7)


@dataclass(frozen=True, slots=True, kw_only=True)
class Matrix:
    """A table of cells with a heading for each row and column."""

    corner: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]


def scores(run: RunHistory) -> Scores | None:
    """The test of the best model, else of the last, else the validation of the best round; None where nothing was measured."""
    if run.ended and run.ended.test:
        model = "best" if "best" in run.ended.test else sorted(run.ended.test)[0]
        results = run.ended.test[model]
        number = run.ended.best_round if model == "best" else last_round(run)
        return Scores(split="test", model=model, round=number, results=results, metrics=merged(results))
    evaluated = [done for done in run.rounds if done.evaluation]
    if not evaluated:
        return None
    best = best_round(run)
    chosen = next((done for done in evaluated if done.round == best), evaluated[-1])
    model = "best" if chosen.round == best else "last"
    return Scores(
        split="validation",
        model=model,
        round=chosen.round,
        results=chosen.evaluation,
        metrics=merged(chosen.evaluation),
    )


def last_round(run: RunHistory) -> int:
    """The last finished round; 0 before the first."""
    return run.rounds[-1].round if run.rounds else 0


def best_round(run: RunHistory) -> int:
    """The round of the best model so far; 0 before the first evaluation."""
    return max((done.round for done in run.rounds if done.is_best), default=0)


def class_rows(run: RunHistory, measured: Scores | None) -> tuple[ClassRow, ...]:
    """Every class, the most frequent in training first: so the table reads down the long tail."""
    metrics = measured.metrics if measured else {}
    task = run.experiment.task
    rows = []
    for name in task.classes:
        found = {score.name: metrics.get(f"{score.name}/{name}") for score in task.scores}
        values = {metric: mean for metric, mean in found.items() if mean is not None and mean.weight}
        rows.append(
            ClassRow(
                name=name,
                presence=_presence(name, run.facts),
                values=values,
                groups=groups(metrics, name, task.scores),
                lead=values.get(task.scores[0].name),
            )
        )
    return tuple(sorted(rows, key=lambda row: -row.presence.patients))


def headline(rows: Sequence[ClassRow]) -> Headline:
    """The unweighted mean of the leading metric over the classes with enough patients."""
    counted = [row for row in rows if row.enough]
    values = [row.lead.value for row in counted if row.lead]
    return Headline(
        value=sum(values) / len(values) if values else math.nan,
        counted=tuple(row.name for row in counted),
        few=tuple(row for row in rows if not row.enough),
    )


def shown(run: RunHistory, measured: Scores | None) -> tuple[str, ...]:
    """The sites that tables and curves show: all by name, or of many the lowest, the middle and the highest, lowest first."""
    if len(run.sites) <= MOST_SITES:
        return run.sites
    lead = run.experiment.task.scores[0].name
    values = {
        result.site: class_mean(result.means(), lead) for result in (measured.results if measured else ())
    }
    ranked = sorted((value, in_order(site), site) for site, value in values.items() if math.isfinite(value))
    names = [site for _, _, site in ranked]
    if len(names) < MOST_SITES:
        return (*names, *(site for site in run.sites if site not in values))[:MOST_SITES]
    third = MOST_SITES // 3
    first = (len(names) - (MOST_SITES - 2 * third)) // 2
    return (*names[:third], *names[first : first + MOST_SITES - 2 * third], *names[-third:])


def site_matrix(run: RunHistory, measured: Scores, classes: Sequence[str], sites: Sequence[str]) -> Matrix:
    """The leading metric of each class at each of the sites, with the number of patients behind it who show the class."""
    scores = run.experiment.task.scores
    answers = {result.site: result for result in measured.results}
    facts = {site.name: site for site in run.facts}
    names = [site for site in sites if site in answers]

    def cell(klass: str, site: str) -> Cell:
        answer = answers[site]
        means = answer.means()
        mean = means.get(f"{scores[0].name}/{klass}")
        if answer.outcome != "ok":
            return Cell(kind="silent", text="no answer")
        if mean is not None and mean.weight:
            count = groups(means, klass, scores).showing
            return Cell(kind="value", text=f"{mean.value:.2f}", note=f"n = {count:g}", share=mean.value)
        if site in facts and klass not in facts[site].presence:
            return Cell(kind="unannotated", text="not annotated")
        return Cell(kind="unreported", text="none reported")

    return _matrix(classes, names, cell)


def presence_matrix(run: RunHistory, classes: Sequence[str], sites: Sequence[str]) -> Matrix:
    """Training patients who show each class at each of the sites."""
    declared = {site.name: site for site in run.facts}
    facts = {name: declared[name] for name in sites if name in declared}

    def cell(klass: str, site: str) -> Cell:
        count = facts[site].presence.get(klass)
        patients = facts[site].patients.get("train", 0)
        if count is None:
            return Cell(kind="unannotated", text="not annotated")
        if count < 0:
            return Cell(kind="few", text="few", note="count hidden")
        if count == 0:
            return Cell(kind="vacant", text="0", note="vacant")
        share = count / patients if patients else 0.0
        return Cell(kind="value", text=str(count), note=f"{share:.0%}", share=share)

    return _matrix(classes, list(facts), cell)


def _presence(name: str, facts: Sequence[SiteFacts]) -> Presence:
    counts = [site.presence[name] for site in facts if name in site.presence]
    return Presence(
        patients=sum(count for count in counts if count > 0),
        hiding=sum(count < 0 for count in counts),
        annotating=len(counts),
        sites=len(facts),
    )


def _matrix(classes: Sequence[str], sites: Sequence[str], cell: Callable[[str, str], Cell]) -> Matrix:
    if len(sites) <= _MOST_COLUMNS:
        rows = tuple((klass, tuple(cell(klass, site) for site in sites)) for klass in classes)
        return Matrix(corner="Class", columns=tuple(sites), rows=rows)
    rows = tuple((site, tuple(cell(klass, site) for klass in classes)) for site in sites)
    return Matrix(corner="Site", columns=tuple(classes), rows=rows)
