"""Intervals and tests: exact where nothing differs, and right as often as they say where the truth is known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from fedmed_common.metrics import SCORES
from fedmed_simulations.compare.columns import Classes, Means, Scored
from fedmed_simulations.compare.statistics import Outcomes, bootstrap, holm, site_means, wilcoxon

CLASSES = Classes(
    names=("a", "b"), groups={"head": ("a",), "medium": (), "tail": ("b",)}, lead=SCORES["segmentation"][0]
)
TRUTH = 0.05


def _worlds(
    rng: np.random.Generator, *, seeds: int, patients: int = 8, same: bool = False
) -> tuple[Outcomes, Outcomes]:
    """A reference and a competitor who is better by ``TRUTH``: what differs besides is drawn by seed and by patient."""
    people = {site: rng.normal(0, 0.1, (patients, 2)) for site in "xy"}
    first, second = {}, {}
    for seed in range(seeds):
        by_seed, one, other = rng.normal(0, 0.02), {}, {}
        for site in "xy":
            gain = TRUTH + by_seed + (people[site] if same else rng.normal(0, 0.1, (patients, 2)))
            base = np.where(rng.random((patients, 2)) < 0.25, np.nan, rng.normal(0.5, 0.2, (patients, 2)))
            one[site] = _tested(base)
            other[site] = _tested(base + gain + rng.normal(0, 0.02, (patients, 2)))
        first[seed], second[seed] = one, other
    return first, second


def _tested(values: np.ndarray) -> Scored:
    wrong = np.where(np.isnan(values), 1.0, np.nan)
    return Scored(
        patients=tuple(range(len(values))), sums={"dice": Means(values), "false_positive": Means(wrong)}
    )


def test_the_same_model_does_not_differ_from_itself() -> None:
    outcomes, _ = _worlds(np.random.default_rng(1), seeds=3)
    found = bootstrap({"a": outcomes, "b": outcomes}, "a", CLASSES, draws=300, same_patients=False)["b"]
    intervals = {name: (one.value, one.low, one.high) for name, one in found.items() if name != "medium"}
    assert intervals == dict.fromkeys(intervals, (0.0, 0.0, 0.0))
    assert np.isnan(found["medium"].value)
    assert wilcoxon(site_means(outcomes, CLASSES), site_means(outcomes, CLASSES)) == 1.0


def test_what_seeds_and_patients_do_to_both_alike_cancels() -> None:
    """Shifting both by the same for each patient, as a hard patient does, moves no interval of means."""
    rng = np.random.default_rng(2)
    first, second = _worlds(rng, seeds=3)
    shifts = {(seed, site): rng.normal(0, 1, (8, 1)) for seed in first for site in "xy"}

    def shifted(outcomes: Outcomes) -> Outcomes:
        return {
            seed: {
                site: _tested(one.sums["dice"].values + shifts[seed, site]) for site, one in outcome.items()
            }
            for seed, outcome in outcomes.items()
        }

    before = bootstrap({"a": first, "b": second}, "a", CLASSES, draws=300, same_patients=False)["b"]
    after = bootstrap(
        {"a": shifted(first), "b": shifted(second)}, "a", CLASSES, draws=300, same_patients=False
    )["b"]
    for column in ("mean", "head", "tail"):
        assert (after[column].value, after[column].low, after[column].high) == pytest.approx(
            (before[column].value, before[column].low, before[column].high), abs=1e-12
        )


@pytest.mark.parametrize("same", [False, True])
def test_the_interval_holds_the_truth_about_as_often_as_it_says(same: bool) -> None:
    """Drawing patients within drawn seeds is a little generous, few seeds are a little strict: 90 to 99.5 % of 300 worlds."""
    rng = np.random.default_rng(3)
    held, worlds = 0, 300
    for _ in range(worlds):
        first, second = _worlds(rng, seeds=5, same=same)
        found = bootstrap({"a": first, "b": second}, "a", CLASSES, draws=200, same_patients=same)["b"]["mean"]
        held += found.low <= TRUTH <= found.high
    assert 0.90 <= held / worlds <= 0.995


def test_patients_who_are_the_same_under_all_seeds_are_drawn_for_all_of_them() -> None:
    """With nothing but patients between the two, five seeds of the same patients know no more than one."""
    rng = np.random.default_rng(4)
    gain = {site: rng.normal(0, 0.2, (12, 2)) for site in "xy"}
    base = {seed: {site: np.full((12, 2), 0.5) for site in "xy"} for seed in range(5)}
    first = {seed: {site: _tested(values) for site, values in sites.items()} for seed, sites in base.items()}
    second = {
        seed: {site: _tested(values + gain[site]) for site, values in sites.items()}
        for seed, sites in base.items()
    }
    widths = {}
    for seeds in (1, 5):
        both = {"a": {s: first[s] for s in range(seeds)}, "b": {s: second[s] for s in range(seeds)}}
        found = bootstrap(both, "a", CLASSES, draws=4000, same_patients=True)["b"]["mean"]
        widths[seeds] = found.high - found.low
    assert widths[5] == pytest.approx(widths[1], rel=0.1)


def test_an_interval_can_be_drawn_again() -> None:
    first, second = _worlds(np.random.default_rng(6), seeds=2)
    both = {"a": first, "b": second}
    again = [bootstrap(both, "a", CLASSES, draws=100, same_patients=False)["b"]["mean"] for _ in range(2)]
    assert again[0] == again[1]
    assert again[0].low < again[0].value < again[0].high


def test_holm_by_hand() -> None:
    found = holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": float("nan")})
    assert {name: found[name] for name in "abc"} == pytest.approx({"a": 0.03, "c": 0.06, "b": 0.06})
    assert np.isnan(found["d"])
    assert holm({"a": 0.9, "b": 0.8}) == {"b": 1.0, "a": 1.0}


def test_wilcoxon_pairs_seeds_and_sites_that_both_have() -> None:
    rng = np.random.default_rng(7)
    keys = [(seed, site) for seed in range(4) for site in "xyz"]
    first = {key: float(value) for key, value in zip(keys, rng.normal(0.5, 0.1, 12), strict=True)}
    second = {key: first[key] - 0.03 + float(rng.normal(0, 0.01)) for key in reversed(keys)}
    expected = stats.wilcoxon([first[key] - second[key] for key in keys]).pvalue
    assert wilcoxon({**first, (9, "x"): 0.1}, {**second, (9, "y"): 0.1}) == pytest.approx(expected)
    assert np.isnan(wilcoxon({(1, "x"): 0.1}, {(2, "x"): 0.1}))
