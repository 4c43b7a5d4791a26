"""Arrays as they travel: one row of float32, named by its layout, and not copied when they lie so already."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from flwr.app import Array
from hypothesis import given
from hypothesis import strategies as st

from fedmed_common.errors import WireError
from fedmed_common.wire_arrays import ENCODED, layout, matched, packed, shelved, unpacked

ARRAYS = {
    "matrix": np.arange(12, dtype=np.float32).reshape(3, 4),
    "turned": np.arange(12, dtype=np.float32).reshape(3, 4).T,
    "number": np.array(2.5, np.float32),
    "nothing": np.zeros((0, 3), np.float32),
}
MIXED = {"places": np.arange(5, dtype=np.uint32), "values": np.arange(5, dtype=np.float32)}


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert list(found) == list(expected)
    for name, array in expected.items():
        assert (found[name].shape, found[name].dtype) == (array.shape, array.dtype)
        np.testing.assert_array_equal(found[name], array)
        assert not found[name].flags.writeable


def test_arrays_of_float32_are_one_row() -> None:
    record = packed(ARRAYS)
    ((name, row),) = record.items()
    assert json.loads(name) == [[key, list(array.shape)] for key, array in ARRAYS.items()]
    np.testing.assert_array_equal(row.numpy(), np.concatenate([array.ravel() for array in ARRAYS.values()]))
    assert_same(matched(record, ARRAYS), ARRAYS)
    assert_same(unpacked(record), ARRAYS)


def test_arrays_of_several_types_are_what_flower_makes_of_them() -> None:
    record = packed(MIXED)
    for name, array in MIXED.items():
        expected = Array(array)
        assert (record[name].dtype, tuple(record[name].shape)) == (expected.dtype, tuple(expected.shape))
        assert record[name].data == expected.data
    assert_same(matched(record, MIXED), MIXED)
    assert_same(unpacked(record, ENCODED), MIXED)
    with pytest.raises(WireError):
        unpacked(record)


def test_what_lies_as_it_travels_is_not_copied() -> None:
    arrays = shelved(ARRAYS)
    assert_same(arrays, ARRAYS)
    data = [packed(arrays)[layout(ARRAYS)].data for _ in range(2)]
    assert data[0] is data[1]
    assert shelved({}) == {}
    assert packed(unpacked(packed(arrays)))[layout(ARRAYS)].data is data[0]


@pytest.mark.parametrize(
    "part",
    [
        lambda arrays: {name: arrays[name] for name in ("matrix", "turned")},
        lambda arrays: {name: arrays[name] for name in ("turned", "number", "nothing")},
        lambda arrays: dict(reversed(arrays.items())),
        lambda arrays: {**arrays, "matrix": arrays["matrix"].T},
        lambda arrays: {**arrays, "matrix": arrays["matrix"][::-1]},
        lambda arrays: {**arrays, "number": np.array(3.0, np.float32)},
        lambda arrays: {**arrays, "matrix": shelved({"x": arrays["matrix"]})["x"]},
        lambda arrays: {"one": arrays["matrix"], "same": arrays["matrix"]},
    ],
)
def test_a_part_of_such_arrays_or_another_look_at_them_is_packed_as_it_is(part) -> None:
    piece = part(shelved(ARRAYS))
    assert_same(matched(packed(piece), piece), piece)


def test_other_bytes_that_hold_a_row_are_not_taken_for_one() -> None:
    inner = Array(np.arange(30, dtype=np.float32)).data
    array = np.frombuffer(inner, np.float32)
    assert_same(matched(packed({"x": array}), {"x": array}), {"x": array})


def _row(name: str, count: int = 4) -> dict[str, Array]:
    return {name: Array(np.zeros(count, np.float32))}


@pytest.mark.parametrize(
    "name",
    [
        "x",
        "[]",
        '[["a",[2,2]],["a",[]]]',
        '[["a",[-2,-2]]]',
        '[["a",[2.0,2]]]',
        '[["a",[true,4]]]',
        '[["a",4]]',
        "[[1,[4]]]",
        '[["a",[5]]]',
        "[" * 100_000,
    ],
)
def test_a_row_that_is_not_what_its_name_says_is_refused(name: str) -> None:
    with pytest.raises(WireError):
        unpacked(_row(name))


@given(st.binary(max_size=200))
def test_no_bytes_get_through_or_raise_anything_else(data: bytes) -> None:
    stream = io.BytesIO()
    np.save(stream, np.zeros(3, np.float32))
    for content in (data, stream.getvalue()[:10] + data, stream.getvalue() + data):
        array = Array(dtype="float32", shape=(3,), stype="numpy.ndarray", data=content)
        try:
            found = matched({layout({"x": np.zeros(3, np.float32)}): array}, {"x": np.zeros(3, np.float32)})
        except WireError:
            continue
        assert content == stream.getvalue()
        assert found["x"].shape == (3,)
