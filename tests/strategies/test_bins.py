"""Histograms that leave without noise: what is kept of them, and of whom they tell."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fedmed_strategies.statistics.bins import Bins, grouped, to_seen
from fedmed_strategies.statistics.survey import SPACINGS

COUNTS = arrays(np.float64, st.tuples(st.integers(1, 3), st.integers(1, 40)), elements=st.integers(0, 9))


@given(COUNTS, st.integers(1, 12))
def test_groups_are_of_enough_patients_and_none_is_lost(counts: np.ndarray, least: int) -> None:
    told = grouped(counts, least)
    assert (told[told > 0] >= least).all()
    enough = counts.sum(axis=1) >= least
    np.testing.assert_array_equal(told.sum(axis=1), np.where(enough, counts.sum(axis=1), 0))


@given(COUNTS)
def test_groups_of_one_are_the_counts_themselves(counts: np.ndarray) -> None:
    np.testing.assert_array_equal(grouped(counts, 1), counts)


@given(COUNTS, COUNTS, st.integers(1, 12))
def test_only_bins_that_enough_have_seen_are_told(amounts: np.ndarray, seen: np.ndarray, least: int) -> None:
    seen = np.resize(seen, amounts.shape)
    told = to_seen(amounts, seen, least)
    assert not told[seen < least].any()
    some = (seen >= least).any(axis=1)
    np.testing.assert_allclose(told.sum(axis=1), np.where(some, amounts.sum(axis=1), 0))


def test_a_value_is_counted_with_the_nearest_centre() -> None:
    bins = Bins(0.0, 10.0, 6)
    assert bins.places(np.array([-3.0, 0.9, 1.1, 9.9, 40.0])).tolist() == [0, 0, 1, 5, 5]
    for place, centre in enumerate(SPACINGS.centres):
        assert SPACINGS.places(np.array([centre]))[0] == place
