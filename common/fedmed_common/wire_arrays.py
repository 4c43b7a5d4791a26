"""Arrays on the wire: Flower's NPY buffers, which are compared with what is expected before anything is read of them."""

from __future__ import annotations

import io
import math
import tokenize
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord
from numpy.typing import NDArray

from fedmed_common.errors import WireError
from fedmed_common.squeezing import SQUEEZED

Types = frozenset[np.dtype[Any]]
FLOAT32: Types = frozenset({np.dtype(np.float32)})
ENCODED: Types = FLOAT32 | {np.dtype(kind) for kind in (np.uint32, np.uint16, np.uint8, np.int8)}
"""Of what codecs make of float32."""
_HEADER_LIMIT = 512
_PREAMBLE = 10


def packed(arrays: Mapping[str, NDArray[Any]]) -> ArrayRecord:
    """Arrays as Flower carries them; make it once and share it between the orders of a round."""
    return ArrayRecord({name: _packed(array) for name, array in arrays.items()})


def shelved(arrays: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """The same arrays, read-only and laid out as they travel, so that they are not copied whenever they are packed.

    They move one by one: no more than one of them is in memory twice, where the caller keeps none.
    """
    for name, array in arrays.items():
        arrays[name] = read(_packed(array), frozenset({array.dtype}))
    return arrays


def _packed(array: NDArray[Any]) -> Array:
    """As ``numpy.save`` lays it out, with one copy of the numbers, or none of those that lie so already."""
    data = _travelling(array)
    if data is None:
        header = io.BytesIO()
        form = {
            "descr": np.lib.format.dtype_to_descr(array.dtype),
            "fortran_order": False,
            "shape": array.shape,
        }
        np.lib.format.write_array_header_1_0(header, form)
        numbers = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        data = b"".join((header.getvalue(), numbers.data))
    return Array(dtype=str(array.dtype), shape=array.shape, stype="numpy.ndarray", data=data)


def _travelling(array: NDArray[Any]) -> bytes | None:
    """The NPY buffer that the array is a view of all of, where there is one."""
    behind = array.base
    while isinstance(behind, np.ndarray):
        behind = behind.base
    if not isinstance(behind, bytes) or not array.flags.c_contiguous:
        return None
    try:
        whole = read(
            Array(dtype=str(array.dtype), shape=array.shape, stype="numpy.ndarray", data=behind),
            frozenset({array.dtype}),
        )
    except WireError:
        return None
    same = whole.__array_interface__["data"][0] == array.__array_interface__["data"][0]
    return behind if same and whole.shape == array.shape and whole.size else None


def matched(arrays: Mapping[str, Array], template: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """The arrays, which are like the template's.

    Raises:
        WireError: they are not.
    """
    if list(arrays) != list(template):
        raise WireError("parameter names")
    return {
        name: _array(arrays[name], expected, at_most=name == SQUEEZED) for name, expected in template.items()
    }


def _array(array: Array, expected: NDArray[Any], *, at_most: bool = False) -> NDArray[Any]:
    """Decode an array like the expected one; sizes are compared before anything is read. ``at_most``: it is a row, and may be
    shorter."""
    size = len(array.data)
    if size > expected.nbytes + _HEADER_LIMIT or (size < expected.nbytes and not at_most):
        raise WireError("parameter size")
    return read(array, frozenset({expected.dtype}), None if at_most else expected.shape)


def read(array: Array, types: Types, expected: tuple[int, ...] | None = None) -> NDArray[Any]:
    """Decode one NPY buffer.

    Raises:
        WireError: it is none, or not of these types, or not of the expected shape.
    """
    data = array.data
    if array.stype != "numpy.ndarray" or not isinstance(data, bytes):
        raise WireError("parameter encoding")
    begins = _PREAMBLE + int.from_bytes(data[_PREAMBLE - 2 : _PREAMBLE], "little")
    if not begins <= min(len(data), _PREAMBLE + _HEADER_LIMIT):
        raise WireError("parameter encoding")
    shape, fortran, kind = _header(data[:begins])
    if kind not in types or (fortran and len(shape) > 1):
        raise WireError("parameter type")
    if expected is not None and shape != expected:
        raise WireError("parameter shape")
    if any(type(size) is not int or size < 0 for size in shape):
        raise WireError("parameter shape")
    if len(data) - begins != math.prod(shape) * kind.itemsize:
        raise WireError("parameter size")
    return np.frombuffer(data, kind, offset=begins).reshape(shape)


@lru_cache(4096)
def _header(data: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, order and type that an NPY buffer's first bytes tell. All replies to an order begin their arrays alike."""
    stream = io.BytesIO(data)
    try:
        if np.lib.format.read_magic(stream) != (1, 0):
            raise WireError("parameter encoding")
        found: tuple[tuple[int, ...], bool, np.dtype[Any]] = np.lib.format.read_array_header_1_0(
            stream, max_header_size=_HEADER_LIMIT
        )
    except (ValueError, TypeError, SyntaxError, EOFError, tokenize.TokenError):
        raise WireError("parameter encoding") from None
    return found
