"""Drawn sites: everyone is dealt once, keeps the split, and the draw is the same each time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmed_client.data.cohort import Case, Cohort
from fedmed_common.config import Partition
from fedmed_common.errors import ConfigError
from fedmed_simulations.partition import draw_sites

SPLITS = ("train", "train", "train", "validation", "test")


def _cohort(patients: int) -> Cohort:
    rng = np.random.default_rng(patients)
    cases = tuple(
        Case(
            id=f"{patient}-{number}",
            patient=patient,
            split=SPLITS[patient % 5],  # type: ignore[arg-type]
            image=np.zeros((1, 1, 1, 1), np.float32),
            label=np.zeros((1, 1, 1), np.uint8),
            spacing_mm=(1.0, 1.0, 1.0),
            annotated=(True, True),
            present=(True, bool(rng.random() < 0.3)),
            points=(np.zeros((0, 3), np.int32),) * 2,
            oriented=True,
        )
        for patient in range(patients)
        for number in range(1 + patient % 2)
    )
    return Cohort(site="all", classes=("a", "b"), cases=cases, manifest_hash="0", skipped=())


@given(
    st.sampled_from(["even", "dirichlet", "quantity"]),
    st.integers(1, 12),
    st.integers(20, 60),
    st.integers(0, 99),
)
def test_everyone_is_dealt_once(kind: str, sites: int, patients: int, seed: int) -> None:
    cohort = _cohort(patients)
    drawn = draw_sites(cohort, Partition(kind=kind, sites=sites, alpha=0.3), seed).sites  # type: ignore[arg-type]
    assert len(drawn) == sites
    assert sorted(case.id for site in drawn for case in site.cases) == sorted(
        case.id for case in cohort.cases
    )
    homes = [{case.patient for case in site.cases} for site in drawn]
    assert sum(map(len, homes)) == len(set.union(*homes)) == patients
    assert all(site.patients("train") >= 1 for site in drawn)
    again = draw_sites(cohort, Partition(kind=kind, sites=sites, alpha=0.3), seed).sites  # type: ignore[arg-type]
    assert [[case.id for case in site.cases] for site in drawn] == [
        [case.id for case in site.cases] for site in again
    ]


def test_even_is_even() -> None:
    drawn = draw_sites(_cohort(100), Partition(kind="even", sites=4), 0).sites
    assert {site.patients("train") for site in drawn} == {15}


def test_too_many_sites_is_an_error() -> None:
    with pytest.raises(ConfigError, match="cannot make 30 sites"):
        draw_sites(_cohort(20), Partition(sites=30), 0)
