"""What can be said of differences: intervals from drawing seeds and patients again, and a test over seeds and sites."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fedmed_simulations.compare.columns import (
    Array,
    Classes,
    Outcome,
    class_values,
    columns,
    finite_mean,
    once,
)

Outcomes = Mapping[int, Outcome]
"""Of one competitor, by seed."""

LEVEL = 0.95


@dataclass(frozen=True, slots=True)
class Interval:
    """A value, and where it lies with 95 % confidence; NaN where it has none."""

    value: float
    low: float
    high: float


def point(outcomes: Outcomes, classes: Classes) -> dict[str, Array]:
    """Each column by seed, in the order of the seeds."""
    found = [columns(outcome, classes, once(outcome)) for outcome in outcomes.values()]
    return {name: np.array([one[name][0] for one in found]) for name in found[0]}


def bootstrap(
    competitors: Mapping[str, Outcomes],
    reference: str,
    classes: Classes,
    *,
    draws: int,
    same_patients: bool,
    seed: int = 0,
) -> dict[str, dict[str, Interval]]:
    """Paired differences of each competitor to the reference, by column, each with a percentile interval.

    Seeds are drawn with replacement, and for each drawn seed the test patients of each site (Efron and Tibshirani 1993, 'An
    introduction to the bootstrap', chapters 8 and 13). Of several seeds one less is drawn, or the spread of so few would come out
    too small (Rao and Wu 1988, Journal of the American Statistical Association 83). The same draw serves all competitors, so that
    what a seed or a patient does to all of them alike cancels. ``same_patients``: all seeds test the same patients; then one draw
    of patients serves all seeds in it, for it is the same people whom another study would replace.
    """
    drawn = _Draws(competitors[reference], draws, same_patients=same_patients, seed=seed)
    values = {name: drawn.columns(outcomes, classes) for name, outcomes in competitors.items()}
    points = {name: point(outcomes, classes) for name, outcomes in competitors.items()}
    return {
        name: {
            column: _interval(
                float(finite_mean(points[name][column] - points[reference][column])),
                finite_mean(drawn_BS - values[reference][column]),
            )
            for column, drawn_BS in values[name].items()
        }
        for name in competitors
        if name != reference
    }


def site_means(outcomes: Outcomes, classes: Classes) -> dict[tuple[int, str], float]:
    """The leading metric by seed and site: the mean over its classes."""
    found: dict[tuple[int, str], float] = {}
    for seed, outcome in outcomes.items():
        _, of_sites = class_values(outcome, classes.lead.name, once(outcome))
        found |= {(seed, site): float(value) for site, value in zip(outcome, of_sites[0], strict=True)}
    return found


def wilcoxon(first: Mapping[tuple[int, str], float], second: Mapping[tuple[int, str], float]) -> float:
    """Two-sided p of the signed-rank test over seeds and sites; 1 where nothing differs, NaN where nothing can be paired."""
    from scipy import stats

    pairs = [(first[key], second[key]) for key in first.keys() & second.keys()]
    differences = np.array([a - b for a, b in pairs if np.isfinite(a - b)])
    if not differences.size:
        return float("nan")
    if not differences.any():
        return 1.0
    return float(stats.wilcoxon(differences).pvalue)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Adjusted for how many there are: Holm 1979, Scandinavian Journal of Statistics 6."""
    adjusted, highest = {}, 0.0
    tested = sorted(
        (name for name in p_values if np.isfinite(p_values[name])), key=lambda name: p_values[name]
    )
    for place, name in enumerate(tested):
        highest = max(highest, min(1.0, (len(tested) - place) * p_values[name]))
        adjusted[name] = highest
    return {name: adjusted.get(name, float("nan")) for name in p_values}


class _Draws:
    """Which seeds are in which draw, and how often which patients: one set of draws for all competitors."""

    def __init__(self, like: Outcomes, draws: int, *, same_patients: bool, seed: int) -> None:
        rng = np.random.default_rng([seed, 0xB007])
        self._seeds = list(like)
        self._chosen = rng.integers(len(self._seeds), size=(draws, max(1, len(self._seeds) - 1)))
        shared: dict[str, Array] = {}
        self._weights: list[dict[str, Array]] = []
        for place, number in enumerate(self._seeds):
            rows = np.nonzero(self._chosen == place)[0]
            weights = {}
            for site, scored in like[number].items():
                people = len(scored.patients)
                if same_patients:
                    shared.setdefault(site, _resampled(rng, draws, people))
                    weights[site] = shared[site][rows]
                else:
                    weights[site] = _resampled(rng, len(rows), people)
            self._weights.append(weights)

    def columns(self, outcomes: Outcomes, classes: Classes) -> dict[str, Array]:
        """Each column for each draw and each seed in it, ``(B, S)``."""
        by_place: dict[str, Array] = {}
        for place, number in enumerate(self._seeds):
            where = self._chosen == place
            for name, values in columns(outcomes[number], classes, self._weights[place]).items():
                by_place.setdefault(name, np.full(self._chosen.shape, np.nan))[where] = values
        return by_place


def _resampled(rng: np.random.Generator, draws: int, people: int) -> Array:
    """How often each of ``people`` is among as many drawn with replacement, ``(draws, people)``."""
    if not people:
        return np.zeros((draws, 0))
    return rng.multinomial(people, np.full(people, 1 / people), size=draws).astype(np.float64)


def _interval(value: float, drawn_B: Array) -> Interval:
    finite = drawn_B[np.isfinite(drawn_B)]
    if not finite.size:
        return Interval(value, float("nan"), float("nan"))
    low, high = np.quantile(finite, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(value, float(low), float(high))
