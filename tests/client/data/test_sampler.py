"""Which patches are drawn, and that they are cut where they were drawn."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmed_client.data.cohort import Case
from fedmed_client.data.sampler import PatchSampler, Pick
from fedmed_common.config import Experiment
from fedmed_common.errors import DataError

MakeExperiment = Callable[..., Experiment]
MakeCase = Callable[..., Case]


def _numbered(shape: tuple[int, int, int]) -> np.ndarray:
    """Every voxel holds its own number, from 1: zero is padding."""
    return np.arange(1, 1 + np.prod(shape), dtype=np.float32).reshape(1, *shape)


def test_shapes_and_types(make_case: MakeCase, make_experiment: MakeExperiment) -> None:
    label = np.zeros((20, 21, 22))
    label[3, 4, 5] = 2
    case = make_case(_numbered((20, 21, 22)), label, classes=3, annotated=(True, False, True))
    experiment = make_experiment(("a", "b", "c"), (8, 12, 16), train={"batch_size": 5})
    image, target, annotated = PatchSampler([case], experiment).batch(np.random.default_rng(0))
    assert (image.shape, image.dtype) == ((5, 1, 8, 12, 16), torch.float32)
    assert (target.shape, target.dtype) == ((5, 8, 12, 16), torch.int64)
    assert annotated.dtype == torch.bool
    assert annotated.tolist() == [[True, False, True]] * 5


def test_the_same_generator_gives_the_same_batches(
    make_case: MakeCase, make_experiment: MakeExperiment
) -> None:
    rng = np.random.default_rng(0)
    cases = [
        make_case(rng.random((1, 20, 20, 3)), rng.integers(0, 2, (20, 20, 3)), patient=n) for n in range(4)
    ]
    renamed = [replace(case, id=f"other {number}") for number, case in enumerate(cases)]
    experiment = make_experiment(data={"augmentation": "standard"})
    one, two = PatchSampler(cases, experiment), PatchSampler(renamed, experiment)
    first, second = np.random.default_rng(7), np.random.default_rng(7)
    for _ in range(5):
        for here, there in zip(one.batch(first), two.batch(second), strict=True):
            assert torch.equal(here, there)
    assert first.bit_generator.state == second.bit_generator.state


def test_drawing_does_not_depend_on_what_is_drawn(
    make_case: MakeCase, make_experiment: MakeExperiment
) -> None:
    states = []
    for share in (0.0, 1.0):
        experiment = make_experiment(data={"foreground_share": share})
        case = make_case(_numbered((20, 20, 1)), np.eye(20)[..., None])
        rng = np.random.default_rng(0)
        PatchSampler([case], experiment).batch(rng)
        states.append(rng.bit_generator.state)
    assert states[0] == states[1]


def test_patients_weigh_alike_however_many_cases_they_have(
    make_case: MakeCase, make_experiment: MakeExperiment
) -> None:
    cases = [
        make_case(_numbered((8, 8, 1)), np.zeros((8, 8, 1)), patient=int(n >= 9), id=str(n))
        for n in range(10)
    ]
    experiment = make_experiment(train={"batch_size": 4000})
    counts = Counter(pick.case for pick in PatchSampler(cases, experiment).draw(np.random.default_rng(0)))
    assert abs(counts[9] - 2000) < 150
    assert all(abs(counts[n] - 2000 / 9) < 75 for n in range(9))


def test_foreground_patches_hold_their_classes_evenly(
    make_case: MakeCase, make_experiment: MakeExperiment
) -> None:
    label = np.zeros((60, 60, 1))
    label[5:25, 5:25] = 1
    label[50, 50] = 3
    case = make_case(_numbered((60, 60, 1)), label, classes=3)
    experiment = make_experiment(
        ("a", "b", "c"), (8, 8), data={"foreground_share": 1.0}, train={"batch_size": 1000}
    )
    _, target, _ = PatchSampler([case], experiment).batch(np.random.default_rng(0))
    centres = Counter(target[:, 4, 4].tolist())
    assert set(centres) == {1, 3}
    assert abs(centres[3] - 500) < 80


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_the_rest_is_even_over_all_places(
    make_case: MakeCase, make_experiment: MakeExperiment, share: float
) -> None:
    label = np.zeros((11, 11, 1))
    label[10, 10] = 1
    experiment = make_experiment(data={"foreground_share": share}, train={"batch_size": 4000})
    sampler = PatchSampler([make_case(_numbered((11, 11, 1)), label)], experiment)
    corners = Counter(pick.corner for pick in sampler.draw(np.random.default_rng(0)))
    assert set(corners) == {(x, y, 0) for x in range(4) for y in range(4)}
    at_voxel = corners.pop((3, 3, 0))
    assert abs(at_voxel - 4000 * (share + (1 - share) / 16)) < 180
    assert all(abs(count - 4000 * (1 - share) / 16) < 80 for count in corners.values())


def test_a_case_without_foreground_is_still_drawn(
    make_case: MakeCase, make_experiment: MakeExperiment
) -> None:
    case = make_case(_numbered((10, 10, 1)), np.zeros((10, 10, 1)))
    experiment = make_experiment(data={"foreground_share": 1.0})
    image, target, _ = PatchSampler([case], experiment).batch(np.random.default_rng(0))
    assert (image > 0).all()
    assert not target.any()


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, 24)] * 3),
    patch=st.tuples(*[st.sampled_from([4, 8, 16])] * 3),
    flat=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_patch_is_the_part_of_the_case_that_was_picked(
    shape: tuple[int, int, int], patch: tuple[int, int, int], flat: bool, seed: int
) -> None:
    experiment = Experiment.model_validate(
        {
            "name": "test",
            "rounds": 1,
            "task": {"classes": ["a"], "dimensions": 2 if flat else 3},
            "data": {"patch": patch[: 2 if flat else 3], "augmentation": "none"},
            "model": {"channels": (4, 8)},
        }
    )
    numbers = _numbered(shape)
    label = (numbers[0] % 3 == 0).astype(np.uint8)
    case = Case(
        id="",
        patient=0,
        split="train",
        image=numbers,
        label=label,
        spacing_mm=(1.0, 1.0, 1.0),
        annotated=(True,),
        present=(bool(label.any()),),
        points=(np.argwhere(label).astype(np.int32),),
        oriented=True,
    )
    sampler = PatchSampler([case], experiment)
    picks = sampler.draw(np.random.default_rng(seed))
    image, target, _ = sampler.cut(picks)
    size = (*patch[:2], 1) if flat else patch
    for pick, cut, marks in zip(
        picks, image.numpy().reshape(-1, *size), target.numpy().reshape(-1, *size), strict=True
    ):
        for axis, (start, length, whole) in enumerate(zip(pick.corner, size, shape, strict=True)):
            spare = whole - length
            assert 0 <= start <= spare if spare >= 0 else start == -(-spare // 2), axis
        around = np.pad(numbers[0], [(length, length) for length in size])
        box = tuple(slice(start + n, start + 2 * n) for start, n in zip(pick.corner, size, strict=True))
        assert np.array_equal(cut, around[box])
        assert np.array_equal(marks, (cut > 0) & (cut % 3 == 0))


def test_2d_patches_of_a_volume_come_from_slices_that_show_the_class(
    make_case: MakeCase, make_experiment: MakeExperiment
) -> None:
    label = np.zeros((16, 16, 9))
    label[8, 8, 7] = 1
    case = make_case(_numbered((16, 16, 9)), label)
    always = PatchSampler([case], make_experiment(data={"foreground_share": 1.0}, train={"batch_size": 50}))
    assert {pick.corner[2] for pick in always.draw(np.random.default_rng(0))} == {7}
    never = PatchSampler([case], make_experiment(data={"foreground_share": 0.0}, train={"batch_size": 500}))
    assert {pick.corner[2] for pick in never.draw(np.random.default_rng(0))} == set(range(9))


def test_a_batch_does_not_touch_the_case(make_case: MakeCase, make_experiment: MakeExperiment) -> None:
    case = make_case(_numbered((8, 8, 1)), np.zeros((8, 8, 1)))
    image, target, _ = PatchSampler([case], make_experiment()).cut([Pick(0, (0, 0, 0), 0)])
    image += 1
    target += 1
    assert np.array_equal(case.image, _numbered((8, 8, 1)))
    assert not case.label.any()


def test_no_case_is_an_error(make_experiment: MakeExperiment) -> None:
    with pytest.raises(DataError, match="no case"):
        PatchSampler([], make_experiment())
