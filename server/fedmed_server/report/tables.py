"""The report's tables: from a run's history to rows that a template can lay out. Nothing here knows HTML."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from fedmed_common.metrics import Mean, Metrics
from fedmed_server.history import SiteFacts, SiteResult
from fedmed_server.report.source import RunHistory, in_order, merged

ENOUGH_PATIENTS = 10
"""A class with fewer test patients is no part of the headline: the standard error of its mean would exceed 0.05 to 0.1."""

MOST_SITES = 40
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
class ClassRow:
    """One class over all sites."""

    name: str
    presence: Presence
    dice: Mean | None
    false_positive: Mean | None
    surface: Mean | None
    surface_dice: Mean | None

    @property
    def enough(self) -> bool:
        """Whether the class counts in the headline."""
        return self.dice is not None and self.dice.weight >= ENOUGH_PATIENTS


@dataclass(frozen=True, slots=True, kw_only=True)
class Headline:
    """The mean over the classes with enough patients, and the others by name."""

    dice: float
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

    def value(metric: str, name: str) -> Mean | None:
        mean = metrics.get(f"{metric}/{name}")
        return mean if mean is not None and mean.weight else None

    rows = [
        ClassRow(
            name=name,
            presence=_presence(name, run.facts),
            dice=value("dice", name),
            false_positive=value("false_positive", name),
            surface=value("hd95_mm", name),
            surface_dice=value("nsd", name),
        )
        for name in run.experiment.task.classes
    ]
    return tuple(sorted(rows, key=lambda row: -row.presence.patients))


def headline(rows: Sequence[ClassRow]) -> Headline:
    """The unweighted mean Dice over the classes with enough patients."""
    counted = [row for row in rows if row.enough]
    values = [row.dice.value for row in counted if row.dice]
    return Headline(
        dice=sum(values) / len(values) if values else math.nan,
        counted=tuple(row.name for row in counted),
        few=tuple(row for row in rows if not row.enough),
    )


def dice_matrix(run: RunHistory, measured: Scores, classes: Sequence[str]) -> Matrix:
    """Dice of each class at each site, with the number of patients behind it."""
    answers = {result.site: result for result in measured.results}
    facts = {site.name: site for site in run.facts}
    names = sorted(answers, key=in_order)[:MOST_SITES]

    def cell(klass: str, site: str) -> Cell:
        answer = answers[site]
        mean = answer.means().get(f"dice/{klass}")
        if answer.outcome != "ok":
            return Cell(kind="silent", text="no answer")
        if mean is not None and mean.weight:
            return Cell(kind="value", text=f"{mean.value:.2f}", note=f"n = {mean.weight:g}", share=mean.value)
        if site in facts and klass not in facts[site].presence:
            return Cell(kind="unannotated", text="not annotated")
        return Cell(kind="unreported", text="none reported")

    return _matrix(classes, names, cell)


def presence_matrix(run: RunHistory, classes: Sequence[str]) -> Matrix:
    """Training patients who show each class at each site."""
    facts = {site.name: site for site in run.facts[:MOST_SITES]}

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
