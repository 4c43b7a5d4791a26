"""Pools of patients that were never on disk."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from hypothesis import strategies as st

from fedmed_client.data.cohort import Case, Cohort

SPLITS = ("train", "train", "train", "validation", "test")
Shown = Sequence[Sequence[bool]]


def pool_of(shown: Shown, *, cases: int = 1, salt: str = "") -> Cohort:
    """A patient for each row, with several cases if wanted; three in five train. ``salt``: part of each case's random id."""
    classes = len(shown[0])
    voxels = [np.full((1, 1, 1), k, np.uint8) for k in range(classes + 1)]
    return Cohort(
        site="all",
        classes=tuple("abcdefgh"[:classes]),
        cases=tuple(
            Case(
                id=f"{salt}{patient}-{number}",
                patient=patient,
                split=SPLITS[patient % 5],  # type: ignore[arg-type]
                image=np.zeros((1, 1, 1, 1), np.float32),
                label=voxels[max((k for k, here in enumerate(row, start=1) if here), default=0)],
                spacing_mm=(1.0, 1.0, 1.0),
                annotated=(True,) * classes,
                present=tuple(row),
                points=tuple(np.zeros((int(here), 3), np.int32) for here in row),
                oriented=True,
            )
            for patient, row in enumerate(shown)
            for number in range(cases)
        ),
        manifest_hash="0",
        skipped=(),
    )


def one_each(counts: Sequence[int]) -> Cohort:
    """Five patients for each unit of a class's count, three of them in training; each shows that class alone."""
    rows = [
        [k == klass for k in range(len(counts))]
        for klass, count in enumerate(counts)
        for _ in range(5 * count)
    ]
    return pool_of(rows)


@st.composite
def pools(draw: st.DrawFn, most: int = 60) -> Cohort:
    """Any pool of twenty patients and more: some show nothing, some all of it."""
    classes = draw(st.integers(2, 5))
    patients = draw(st.integers(20, most))
    share = draw(st.floats(0.05, 0.95))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    tail = share * np.geomspace(1, draw(st.floats(0.05, 1)), classes)
    return pool_of((rng.random((patients, classes)) < tail).tolist(), cases=draw(st.integers(1, 2)))
