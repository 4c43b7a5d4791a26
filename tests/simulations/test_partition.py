"""Drawn sites: everyone is dealt once, keeps the split, and the draw is the same each time."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from pools import one_each, pool_of, pools

from fedmed_client.data.cohort import Cohort
from fedmed_common.config import Partition
from fedmed_common.errors import ConfigError
from fedmed_simulations.partition import Drawn, draw_sites
from fedmed_simulations.partition.patients import patients_of
from fedmed_simulations.partition.tail import kept_in_tail, tail_aims

KINDS = ("even", "dirichlet", "presence", "quantity")
SETTINGS = st.fixed_dictionaries(
    {
        "kind": st.sampled_from(KINDS),
        "sites": st.integers(2, 12),
        "alpha": st.sampled_from([0.1, 0.5, 10.0]),
        "vacant": st.integers(0, 1),
        "unannotated": st.integers(0, 1),
    }
)


def _patients(cohort: Cohort) -> set[int]:
    return {case.patient for case in cohort.cases}


def _trainers(cohort: Cohort) -> set[int]:
    return {case.patient for case in cohort.of("train")}


def _dealt(drawn: Drawn) -> list[list[int]]:
    return [sorted(_patients(site)) for site in drawn.sites]


def _try(pool: Cohort, seed: int, **settings: object) -> Drawn:
    """A draw; settings that the pool cannot have are another example's."""
    try:
        return draw_sites(pool, Partition.model_validate(settings), seed)
    except ConfigError:
        assume(condition=False)
        raise


@given(pools(), SETTINGS, st.integers(0, 99))
def test_everyone_is_dealt_once(pool: Cohort, settings: Mapping[str, object], seed: int) -> None:
    drawn = _try(pool, seed, **settings)
    assert len(drawn.sites) == settings["sites"]
    dealt = sorted((case.id, case.split) for site in drawn.sites for case in site.cases)
    assert dealt == sorted((case.id, case.split) for case in pool.cases)
    assert sum(len(_patients(site)) for site in drawn.sites) == len(_patients(pool))
    assert all(site.patients("train") >= 1 for site in drawn.sites)


@given(pools(), SETTINGS, st.integers(0, 99))
def test_the_draw_is_the_seeds(pool: Cohort, settings: Mapping[str, object], seed: int) -> None:
    first, again = _try(pool, seed, **settings), _try(pool, seed, **settings)
    assert _dealt(first) == _dealt(again)
    assert [site.manifest_hash for site in first.sites] == [site.manifest_hash for site in again.sites]
    assert (first.unannotated == again.unannotated).all()
    assert (first.vacant == again.vacant).all()


@given(pools(), SETTINGS)
def test_the_random_ids_of_cases_have_no_part_in_it(pool: Cohort, settings: Mapping[str, object]) -> None:
    rows = patients_of(pool).shows.tolist()
    assert _dealt(_try(pool_of(rows), 3, **settings)) == _dealt(_try(pool_of(rows, salt="x"), 3, **settings))


@given(pools(), SETTINGS, st.integers(0, 99))
def test_each_class_keeps_a_site_that_annotates_and_shows_it(
    pool: Cohort, settings: Mapping[str, object], seed: int
) -> None:
    drawn = _try(pool, seed, **settings)
    shown = [name for name, count in pool.presence().items() if count]
    assert [name for name in shown if not any(site.presence().get(name) for site in drawn.sites)] == []


@given(pools(), SETTINGS, st.integers(0, 99))
def test_gaps_are_where_they_are_said_to_be(pool: Cohort, settings: Mapping[str, object], seed: int) -> None:
    drawn = _try(pool, seed, **settings)
    labels = {case.id: case.label for case in pool.cases}
    assert not (drawn.vacant & drawn.unannotated).any()
    assert drawn.vacant.sum(axis=1).max() <= settings["vacant"]  # type: ignore[operator]
    assert drawn.unannotated.sum(axis=1).max() <= settings["unannotated"]  # type: ignore[operator]
    for site, vacant, hidden in zip(drawn.sites, drawn.vacant, drawn.unannotated, strict=True):
        for case in site.cases:
            assert case.label is labels[case.id]
            assert [not known for known in case.annotated] == hidden.tolist()
            assert not (hidden & np.array(case.present)).any()
            assert [len(points) for points in case.points] == [int(here) for here in case.present]
            assert case.split != "train" or not (vacant & np.array(case.present)).any()


@given(pools(), SETTINGS, st.integers(0, 99))
def test_gaps_move_nobody_but_those_whose_class_is_vacant(
    pool: Cohort, settings: Mapping[str, object], seed: int
) -> None:
    drawn = _try(pool, seed, **settings)
    whole = _try(pool, seed, **{**settings, "vacant": 0, "unannotated": 0})
    if not settings["vacant"]:
        assert _dealt(drawn) == _dealt(whole)
    held_out = [_patients(site) - _trainers(site) for site in drawn.sites]
    assert held_out == [_patients(site) - _trainers(site) for site in whole.sites]
    of_patient = dict(zip(patients_of(pool).number.tolist(), patients_of(pool).shows, strict=True))
    for before, after, vacant in zip(whole.sites, drawn.sites, drawn.vacant, strict=True):
        stay = {p for p in _trainers(before) if not (of_patient[p] & drawn.vacant.any(axis=0)).any()}
        assert stay <= _trainers(after)
        assert all(
            (of_patient[p] & drawn.vacant.any(axis=0)).any() for p in _trainers(before) - _trainers(after)
        )
        assert not any((of_patient[p] & vacant).any() for p in _trainers(after))


def test_vacancy_is_had_where_patients_show_one_class_each() -> None:
    drawn = draw_sites(one_each([8, 8, 8]), Partition(kind="even", sites=3, vacant=1), 0)
    assert drawn.vacant.sum(axis=1).tolist() == [1, 1, 1]
    assert drawn.told == ()
    assert sorted(drawn.vacant.sum(axis=0).tolist()) == [1, 1, 1]


def test_what_cannot_be_vacant_is_an_error() -> None:
    everything = pool_of([[True, True]] * 40)
    with pytest.raises(ConfigError, match="vacant = 1 cannot be had"):
        draw_sites(everything, Partition(sites=3, vacant=1), 0)


def test_what_can_only_be_missing_at_some_sites_is_said() -> None:
    drawn = draw_sites(pool_of([[True, True]] * 40), Partition(sites=3, unannotated=1), 0)
    assert drawn.unannotated.sum(axis=1).tolist() == [1, 1, 1]
    lonely = pool_of([[True, k < 1] for k in range(40)])
    drawn = draw_sites(lonely, Partition(sites=3, unannotated=1), 0)
    short = [site.site for site, row in zip(drawn.sites, drawn.unannotated, strict=True) if not row.any()]
    assert drawn.told == (
        (f"Fewer than 1 of the classes could be made unannotated at {', '.join(short)}.",) if short else ()
    )


def test_even_is_even() -> None:
    drawn = draw_sites(pool_of([[True, False]] * 100), Partition(kind="even", sites=4), 0)
    assert {site.patients("train") for site in drawn.sites} == {15}


@given(st.lists(st.integers(4, 20), min_size=2, max_size=5), st.integers(1, 8), st.integers(0, 99))
def test_presence_with_a_large_alpha_is_even_in_each_class(counts: list[int], sites: int, seed: int) -> None:
    assume(3 * sum(counts) >= sites)
    drawn = draw_sites(one_each(counts), Partition(kind="presence", sites=sites, alpha=1e9), seed)
    for site in drawn.sites:
        for name, count in zip(drawn.pool.classes, counts, strict=True):
            assert abs(site.presence()[name] - 3 * count / sites) <= 1


@given(st.integers(0, 99))
def test_presence_with_a_small_alpha_keeps_a_class_together(seed: int) -> None:
    drawn = draw_sites(one_each([30, 30, 30]), Partition(kind="presence", sites=3, alpha=1e-6), seed)
    most = [max(site.presence()[name] for site in drawn.sites) for name in drawn.pool.classes]
    assert min(most) >= 87


@given(pools(), st.sampled_from(KINDS), st.integers(0, 9))
def test_an_imbalance_of_one_leaves_nobody_out(pool: Cohort, kind: str, seed: int) -> None:
    drawn = _try(pool, seed, kind=kind, sites=4, imbalance=1.0)
    assert sum(len(_patients(site)) for site in drawn.sites) == len(_patients(pool))
    assert drawn.aims is None


@given(st.lists(st.integers(3, 20), min_size=2, max_size=5), st.floats(1.01, 200), st.integers(0, 99))
def test_a_tail_of_single_classes_is_the_one_that_was_asked_for(
    counts: list[int], imbalance: float, seed: int
) -> None:
    drawn = _try(one_each(counts), seed, kind="presence", sites=2, imbalance=imbalance)
    found = np.sum([list(site.presence().values()) for site in drawn.sites], axis=0)
    there = 3 * np.array(counts)
    ranked = sorted(range(len(counts)), key=lambda k: (-counts[k], k))
    for rank, k in enumerate(ranked):
        aim = max(1, round(max(there) * imbalance ** (-rank / (len(counts) - 1))))
        assert found[k] == min(there[k], aim)
    held_out = sum(site.patients("validation") + site.patients("test") for site in drawn.sites)
    assert held_out == drawn.pool.patients("validation") + drawn.pool.patients("test")


@given(pools(), st.floats(1.01, 200), st.integers(0, 99))
def test_the_tail_takes_from_training_alone(pool: Cohort, imbalance: float, seed: int) -> None:
    drawn = _try(pool, seed, kind="presence", sites=3, imbalance=imbalance)
    left_out = _patients(pool) - set().union(*map(_patients, drawn.sites))
    assert left_out <= _trainers(pool)
    presence = pool.presence()
    kept = {name: sum(site.presence()[name] for site in drawn.sites) for name in presence}
    assert [name for name, count in presence.items() if count and not kept[name]] == []
    shows = patients_of(pool).shows
    nothing = {number for number in _trainers(pool) if not shows[number].any()}
    assert not nothing & left_out


@given(pools(), st.floats(1.01, 200), st.integers(0, 99))
def test_no_further_patient_would_bring_the_tail_nearer(pool: Cohort, imbalance: float, seed: int) -> None:
    patients = patients_of(pool)
    shows = patients.shows[patients.trains]
    aims = tail_aims(shows, imbalance)
    kept = kept_in_tail(shows, imbalance, np.random.default_rng(seed))
    apart = np.array([k for k in range(shows.shape[1]) if aims[k] and not shows[:, k].all()], int)
    heads = shows.all(axis=0)

    def off(rows: np.ndarray) -> float:
        counts = rows.sum(axis=0)
        classes = [*apart, *np.flatnonzero(heads)[:1]]
        return sum(abs(math.log(counts[k] / aims[k])) if counts[k] else math.inf for k in classes)

    here = off(shows[kept])
    assert here <= off(shows) + 1e-9
    for place in np.flatnonzero(kept):
        fewer = kept.copy()
        fewer[place] = False
        assert off(shows[fewer]) >= here - 1e-6


def test_where_all_show_everything_no_tail_can_be_made() -> None:
    drawn = draw_sites(pool_of([[True, True]] * 50), Partition(kind="presence", sites=2, imbalance=50), 0)
    assert [sum(site.patients("train") for site in drawn.sites), *drawn.aims] == [30, 30, 30]  # type: ignore[misc]


def test_too_many_sites_is_an_error() -> None:
    with pytest.raises(ConfigError, match="cannot make 30 sites"):
        draw_sites(pool_of([[True, False]] * 20), Partition(sites=30), 0)
    with pytest.raises(
        ConfigError, match=r"30 training patients, of which the long tail keeps \d+, cannot make 29 sites"
    ):
        draw_sites(one_each([5, 5]), Partition(kind="presence", sites=29, imbalance=100), 0)


@given(st.lists(st.sampled_from(["x", "y", "z z", "ü"]), min_size=40, max_size=40), st.integers(0, 9))
def test_a_column_makes_a_site_of_each_value(values: list[str], seed: int) -> None:
    pool = pool_of([[True, False]] * 40)
    try:
        drawn = draw_sites(
            pool, Partition(kind="column", column="v", index="i.csv"), seed, dict(enumerate(values))
        )  # type: ignore[arg-type]
    except ConfigError as error:
        assert "none is a training patient" in str(error)
        return
    assert _dealt(drawn) == [
        [patient for patient, value in enumerate(values) if value == one] for one in sorted(set(values))
    ]
    named = {"x": "x", "y": "y", "z z": "z-z", "ü": f"value-{len(set(values))}"}
    assert [site.site for site in drawn.sites] == [named[value] for value in sorted(set(values))]


def test_values_are_put_together_by_size() -> None:
    values = ["big"] * 20 + ["mid"] * 10 + ["small"] * 5 + ["least"] * 5
    pool = pool_of([[True, False]] * 40)
    partition = Partition(kind="column", column="v", index="i.csv", sites=2)  # type: ignore[arg-type]
    drawn = draw_sites(pool, partition, 0, dict(enumerate(values)))
    assert [site.site for site in drawn.sites] == ["big", "least-mid-small"]
    assert [site.patients("train") for site in drawn.sites] == [12, 12]
    assert drawn.told == ("least-mid-small: least, mid, small",)
    with pytest.raises(ConfigError, match="4 values with training patients: they cannot make 5 sites"):
        draw_sites(pool, partition.model_copy(update={"sites": 5}), 0, dict(enumerate(values)))
