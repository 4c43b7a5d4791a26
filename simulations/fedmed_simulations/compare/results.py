"""What a comparison found, as one value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fedmed_simulations.compare.columns import COLUMNS, FALSE, Array, Classes, class_values, finite_mean, once
from fedmed_simulations.compare.settings import FEDAVG, LIKE, LOCAL, POOLED
from fedmed_simulations.compare.statistics import (
    Interval,
    Outcomes,
    bootstrap,
    holm,
    point,
    site_means,
    wilcoxon,
)
from fedmed_simulations.compare.study import Choice, Study
from fedmed_strategies.presets import recipe_of

FEW_SEEDS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """All that the tables and figures show.

    ``points``: competitor -> column -> value by seed. ``differences``: competitor -> column -> to the reference. ``p_values``:
    after Holm. ``by_class``, ``wrong_by_class``: the leading metric and the rate of false positives, mean over seeds, ``(K,)``;
    the latter empty where the task has none. ``sites``: the leading metric by competitor, seed and site.
    """

    name: str
    reference: str
    seeds: tuple[int, ...]
    classes: Classes
    presence: Mapping[str, float]
    points: Mapping[str, Mapping[str, Array]]
    differences: Mapping[str, Mapping[str, Interval]]
    p_values: Mapping[str, float]
    by_class: Mapping[str, Array]
    wrong_by_class: Mapping[str, Array]
    sites: Mapping[str, Mapping[tuple[int, str], float]]
    choices: tuple[Choice, ...]
    budget: int
    steps: str
    notes: tuple[str, ...]

    @property
    def columns(self) -> tuple[str, ...]:
        """Those that have a value."""
        return tuple(
            column
            for column in COLUMNS
            if any(column in one and np.isfinite(one[column]).any() for one in self.points.values())
        )


def results(
    study: Study, measured: Mapping[str, Outcomes], choices: Sequence[Choice], versions: int = 1
) -> Results:
    """Every number of the comparison; ``versions``: as ``carry.versions`` counts."""
    comparison, classes = study.comparison, study.classes()
    ordered = {name: measured[name] for name in sorted(measured, key=_place)}
    reference = comparison.reference
    sites = {name: site_means(outcomes, classes) for name, outcomes in ordered.items()}
    differing = [name for name in ordered if name != reference]
    experiment = study.competitors[0].configurations[0].experiment
    return Results(
        name=comparison.name,
        reference=reference,
        seeds=comparison.seeds,
        classes=classes,
        presence=study.presence(),
        points={name: point(outcomes, classes) for name, outcomes in ordered.items()},
        differences=bootstrap(
            ordered,
            reference,
            classes,
            draws=comparison.draws,
            same_patients=study.runner.sites.same_patients_tested(),
        ),
        p_values=holm({name: wilcoxon(sites[name], sites[reference]) for name in differing}),
        by_class={name: _by_class(outcomes, classes.lead.name) for name, outcomes in ordered.items()},
        wrong_by_class={}
        if classes.lead.paired
        else {name: _by_class(outcomes, FALSE) for name, outcomes in ordered.items()},
        sites=sites,
        choices=tuple(choices),
        budget=study.budget,
        steps=f"{experiment.rounds} rounds x {experiment.train.steps} steps x {experiment.train.batch_size} samples",
        notes=_notes(study, versions),
    )


def _by_class(outcomes: Outcomes, metric: str) -> Array:
    values_SK = np.stack([class_values(one, metric, once(one))[0][0] for one in outcomes.values()])
    return finite_mean(values_SK.T)


def _place(name: str) -> int:
    """Local first and pooled last, with the strategies between them."""
    if name in {LOCAL, FEDAVG, POOLED}:
        return {LOCAL: 0, FEDAVG: 1, POOLED: 4}[name]
    return 2 if name.startswith(LIKE) else 3


def _notes(study: Study, versions: int) -> tuple[str, ...]:
    comparison = study.comparison
    fixed = study.runner.sites.same_patients_tested()
    notes = [
        "Intervals: 95 %, paired bootstrap over seeds and "
        + ("test patients, who are the same under all seeds." if fixed else "the test patients of each seed.")
    ]
    if comparison.pooled_steps == "total":
        notes.append("Pooled training took as many steps as all sites together.")
    notes += [
        f"Beyond the steps that all take, '{competitor.name}' has {piece.beyond_steps} ('{piece.name}')."
        for competitor in study.competitors
        for piece in recipe_of(competitor.configurations[0].experiment).pieces()
        if piece.beyond_steps
    ]
    if len(comparison.seeds) < FEW_SEEDS:
        notes.append(
            f"{len(comparison.seeds)} seeds are few: where seeds differ much, such an interval is too short. Take {FEW_SEEDS} or "
            "more for a claim."
        )
    if study.budget > 1 and not fixed:
        notes.append(
            "Each seed splits the patients anew: some on whom settings were chosen are test patients under another seed. With "
            "[test] none is."
        )
    if versions > 1:
        notes.append(
            f"This comparison was changed after test patients had been measured, and has {versions} versions: the more, the "
            "likelier a difference is chance."
        )
    notes.append(
        "p: Wilcoxon's signed ranks over seeds and sites, after Holm. Sites of one seed share a model, so p is a help for "
        "reading, not a proof."
    )
    return tuple(notes)
