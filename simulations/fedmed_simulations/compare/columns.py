"""The columns of the table: from what was measured of each test patient to head, medium, tail, worst site, false positives.

Everything is computed for many draws of patients at once: ``weights_BP`` says how often each patient is in each of ``B`` draws.
The draw in which each patient is once is the table itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fedmed_common.metrics import Score

Array = NDArray[np.float64]

FALSE = "false_positive"
MEAN, HEAD, MEDIUM, TAIL, WORST, SPREAD = "mean", "head", "medium", "tail", "worst_site", "site_sd"
FALSE_ALL, FALSE_TAIL = "false_positives", "tail_false_positives"
COLUMNS: dict[str, str] = {
    MEAN: "mean",
    HEAD: "head",
    MEDIUM: "medium",
    TAIL: "tail",
    WORST: "worst site",
    SPREAD: "site SD",
    FALSE_ALL: "false positives",
    FALSE_TAIL: "... of tail",
}
"""By name: the heading."""

LOWER_IS_BETTER = frozenset({SPREAD, FALSE_ALL, FALSE_TAIL})


class Sums(Protocol):
    """One metric of one site's test patients, by class."""

    def of(self, weights_BP: Array) -> tuple[Array, Array]:
        """Sum and weight ``(B, K)`` over the drawn patients, as ``metrics.Mean`` has them."""


@dataclass(frozen=True, slots=True, eq=False)
class Means:
    """A metric that is a mean over patients. ``values``: ``(P, K)``, NaN where a patient has none."""

    values: Array

    def of(self, weights_BP: Array) -> tuple[Array, Array]:
        """As in :class:`Sums`."""
        counts = np.isfinite(self.values)
        return weights_BP @ np.where(counts, self.values, 0.0), weights_BP @ counts


@dataclass(frozen=True, slots=True, eq=False)
class Ranks:
    """AUROC, of which a site has one value, with the weight of its patients.

    ``scores``: ``(R, P, K)`` of ``R`` rounds, whose AUROCs are averaged; the others ``(P, K)``. It equals what
    ``Classification.summarise`` makes of the drawn patients: the chance that one who shows the class has a higher score than
    one who does not, a tie counting half. A score that is NaN wins nothing.
    """

    scores: Array
    present: NDArray[np.bool_]
    annotated: NDArray[np.bool_]

    def of(self, weights_BP: Array) -> tuple[Array, Array]:
        """As in :class:`Sums`."""
        columns = [self._of_class(number, weights_BP) for number in range(self.present.shape[1])]
        return np.stack([total for total, _ in columns], 1), np.stack([weight for _, weight in columns], 1)

    def _of_class(self, number: int, weights_BP: Array) -> tuple[Array, Array]:
        known, shows = self.annotated[:, number], self.present[:, number]
        score_RP = self.scores[:, :, number]
        higher = score_RP[:, known & shows, None] - score_RP[:, None, known & ~shows]
        wins = np.where(np.isnan(higher), 0.0, (np.sign(higher) + 1) / 2).mean(0)
        those, others = weights_BP[:, known & shows], weights_BP[:, known & ~shows]
        pairs = those.sum(1) * others.sum(1)
        weight = np.where(pairs > 0, those.sum(1) + others.sum(1), 0.0)
        won = ((those @ wins) * others).sum(1)
        return _ratio(won, pairs, empty=0.0) * weight, weight


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scored:
    """One site's test patients under one seed. ``sums``: by metric."""

    patients: tuple[int, ...]
    sums: Mapping[str, Sums]


Outcome = Mapping[str, Scored]
"""Of one competitor under one seed, by site."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Classes:
    """The classes in the experiment's order, and which are frequent. ``lead``: the metric that counts."""

    names: tuple[str, ...]
    groups: Mapping[str, tuple[str, ...]]
    lead: Score

    def places(self, group: str) -> list[int]:
        """Where the classes of a group stand."""
        return [self.names.index(name) for name in self.groups.get(group, ())]


def thirds(counts: Mapping[str, float]) -> dict[str, tuple[str, ...]]:
    """Head, medium and tail: thirds of the classes by training patients who show them, where equal in the given order.

    Where the classes cannot be divided by three, head and tail have the same number. One class is head; of two one is tail.
    """
    ordered = sorted(counts, key=lambda name: -counts[name])
    third = max(1, round(len(ordered) / 3))
    if len(ordered) == 1:
        return {HEAD: tuple(ordered), MEDIUM: (), TAIL: ()}
    return {HEAD: tuple(ordered[:third]), MEDIUM: tuple(ordered[third:-third]), TAIL: tuple(ordered[-third:])}


def scored(rounds: Sequence[Mapping[int, Any]], classes: Classes) -> Scored:
    """One site's patients as they were measured in the last rounds; a patient's value is the mean over the rounds."""
    patients = tuple(sorted(rounds[0]))
    people = [[measured[patient] for patient in patients] for measured in rounds]
    if classes.lead.paired:
        stacked = {
            name: np.array([[person[name] for person in one] for one in people]).reshape(
                len(rounds), len(patients), len(classes.names)
            )
            for name in ("score", "present", "annotated")
        }
        ranks = Ranks(
            stacked["score"], stacked["present"][0].astype(bool), stacked["annotated"][0].astype(bool)
        )
        return Scored(patients=patients, sums={classes.lead.name: ranks})
    sums = {}
    for metric in (classes.lead.name, FALSE):
        values = [
            [[person.get(f"{metric}/{name}", np.nan) for name in classes.names] for person in one]
            for one in people
        ]
        value_RPK = np.array(values, dtype=np.float64).reshape(len(rounds), len(patients), len(classes.names))
        sums[metric] = Means(value_RPK.mean(0))
    return Scored(patients=patients, sums=sums)


def columns(outcome: Outcome, classes: Classes, weights: Mapping[str, Array]) -> dict[str, Array]:
    """Each column for each draw ``(B,)``, NaN where it has no value; ``weights`` by site, ``(B, P)``."""
    by_class, of_sites = class_values(outcome, classes.lead.name, weights)
    found = {MEAN: finite_mean(by_class)}
    for group in (HEAD, MEDIUM, TAIL):
        found[group] = finite_mean(by_class[:, classes.places(group)])
    measured = np.isfinite(of_sites)
    worst = np.where(measured, of_sites, np.inf).min(axis=1, initial=np.inf)
    found[WORST] = np.where(np.isfinite(worst), worst, np.nan)
    deviation = of_sites - finite_mean(of_sites)[:, None]
    found[SPREAD] = np.sqrt(finite_mean(deviation**2))
    if any(FALSE in site.sums for site in outcome.values()):
        wrong, _ = class_values(outcome, FALSE, weights)
        found[FALSE_ALL], found[FALSE_TAIL] = finite_mean(wrong), finite_mean(wrong[:, classes.places(TAIL)])
    return found


def class_values(outcome: Outcome, metric: str, weights: Mapping[str, Array]) -> tuple[Array, Array]:
    """The metric by class over all sites ``(B, K)``, and by site over its classes ``(B, S)``; NaN where there is none."""
    pairs = {site: scored.sums[metric].of(weights[site]) for site, scored in outcome.items()}
    total = np.sum([total for total, _ in pairs.values()], axis=0)
    weight = np.sum([weight for _, weight in pairs.values()], axis=0)
    of_sites = [finite_mean(_ratio(*pair)) for pair in pairs.values()]
    return _ratio(total, weight), np.stack(of_sites, 1)


def once(outcome: Outcome) -> dict[str, Array]:
    """The draw that has each patient once."""
    return {site: np.ones((1, len(scored.patients))) for site, scored in outcome.items()}


def _ratio(total: Array, weight: Array, empty: float = np.nan) -> Array:
    return np.divide(total, weight, out=np.full_like(total, empty), where=weight > 0)


def finite_mean(values: Array) -> Array:
    """Over the last axis, of those that are numbers; NaN where none is."""
    finite = np.isfinite(values)
    return _ratio(np.where(finite, values, 0.0).sum(-1), finite.sum(-1).astype(np.float64))
