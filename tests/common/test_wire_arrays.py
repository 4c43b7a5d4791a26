"""Arrays as they travel: as numpy writes them, and not copied when they lie so already."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import Array

from fedmed_common.wire_arrays import packed, shelved

ARRAYS = {
    "matrix": np.arange(12, dtype=np.float32).reshape(3, 4),
    "turned": np.arange(12, dtype=np.float32).reshape(3, 4).T,
    "number": np.array(2.5, np.float32),
    "nothing": np.zeros((0, 3), np.float32),
    "bytes": np.arange(5, dtype=np.uint8),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_they_are_what_flower_makes_of_them(name: str) -> None:
    array = np.ascontiguousarray(ARRAYS[name]).reshape(ARRAYS[name].shape)
    ours, expected = packed({"x": ARRAYS[name]})["x"], Array(array)
    assert (ours.dtype, tuple(ours.shape), ours.stype) == (
        expected.dtype,
        tuple(expected.shape),
        expected.stype,
    )
    assert ours.data == expected.data


def test_what_lies_as_it_travels_is_not_copied() -> None:
    arrays = shelved({name: array.copy() for name, array in ARRAYS.items()})
    for name, array in arrays.items():
        assert array.tobytes() == ARRAYS[name].tobytes()
        assert array.shape == ARRAYS[name].shape
        assert not array.flags.writeable
    one, other = packed(arrays), packed(arrays)
    same = {name: one[name].data is other[name].data for name in arrays}
    assert same == {name: name != "nothing" for name in arrays}


@pytest.mark.parametrize(
    "part",
    [
        lambda array: array[:2],
        lambda array: array[1:],
        lambda array: array.T,
        lambda array: array.reshape(4, 3),
        lambda array: array.view(np.int32),
        lambda array: array[::-1],
    ],
)
def test_a_part_of_such_an_array_or_another_look_at_it_is_packed_as_it_is(part) -> None:
    (array,) = shelved({"x": np.arange(12, dtype=np.float32).reshape(3, 4)}).values()
    piece = part(array)
    np.testing.assert_array_equal(packed({"x": piece})["x"].numpy(), piece)


def test_other_bytes_that_begin_like_an_array_are_not_taken_for_one() -> None:
    inner = Array(np.arange(3, dtype=np.float32)).data
    array = np.frombuffer(inner, np.uint8)
    np.testing.assert_array_equal(packed({"x": array})["x"].numpy(), array)
