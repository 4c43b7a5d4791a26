"""Arrays on the wire: Flower's NPY buffers, which are compared with what is expected before anything is read of them.

Arrays of float32 travel as one row, whose name in the record says their names and shapes: a network has hundreds, and each array
of Flower's costs both sides time and, between hospitals, calls. The numbers of a large one may lie in a file (``wire_files``).
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import tokenize
from collections.abc import Iterable, Mapping
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord
from numpy.typing import NDArray

from fedmed_common.errors import WireError
from fedmed_common.squeezing import SQUEEZED
from fedmed_common.wire_files import FILED, LEAST_BYTES, Filed, digest_of, filed_behind

Types = frozenset[np.dtype[Any]]
FLOAT32: Types = frozenset({np.dtype(np.float32)})
ENCODED: Types = FLOAT32 | {np.dtype(kind) for kind in (np.uint32, np.uint16, np.uint8, np.int8)}
"""Of what codecs make of float32."""
Arrays = Mapping[str, NDArray[Any]]
Shapes = tuple[tuple[str, tuple[int, ...]], ...]
_NPY = "numpy.ndarray"
_HEADER_LIMIT = 512
_PREAMBLE = 10


def packed(arrays: Mapping[str, NDArray[Any]]) -> ArrayRecord:
    """Arrays as Flower carries them; make it once and share it between the orders of a round.

    What already lies as it travels, in a file or in memory, is not copied.
    """
    record = ArrayRecord()
    for name, (shape, named) in rows(arrays).items():
        record[name] = _carried(named, shape)
    return record


def rows(arrays: Mapping[str, NDArray[Any]]) -> dict[str, tuple[tuple[int, ...], Arrays]]:
    """How the arrays travel: by name in the record, the shape and the arrays whose numbers follow each other there."""
    if not _is_row(arrays):
        return {name: (array.shape, {name: array}) for name, array in arrays.items()}
    return {layout(arrays): ((_size(arrays),), arrays)}


def packed_alone(name: str, array: NDArray[Any]) -> ArrayRecord:
    """One array, under its own name."""
    return ArrayRecord({name: _carried({name: array}, array.shape)})


def digest(arrays: Mapping[str, NDArray[Any]]) -> str:
    """What tells these arrays from any others: their names, shapes and numbers. Where the numbers came in a file it is known."""
    told = hashlib.sha256()
    for name, (shape, parts) in rows(arrays).items():
        behind = _row_behind(parts)
        numbers = behind.digest if isinstance(behind, Filed) and behind else digest_of(parts.values())
        told.update(repr((name, shape, numbers)).encode())
    return told.hexdigest()


def shelved(arrays: Mapping[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
    """The same arrays, read-only and laid out as they travel, so that they are not copied whenever they are packed."""
    if not _size(arrays):
        return dict(arrays)
    return _split(_read(_array_of(arrays.values(), (_size(arrays),)), FLOAT32), _shapes(arrays))


def row_like(template: Mapping[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
    """Arrays of these shapes, of any numbers, to be written to before they are packed: they lie as they travel, and are not
    copied then."""
    size = _size(template)
    header = _npy_header(np.dtype(np.float32), (size,))
    whole = np.empty(len(header) + 4 * size, np.uint8)
    whole[: len(header)] = np.frombuffer(header, np.uint8)
    return _split(whole[len(header) :].view(np.float32), _shapes(template))


def matched(arrays: Mapping[str, Array], template: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """The arrays, which are like the template's.

    Raises:
        WireError: they are not.
    """
    if _is_row(template):
        if list(arrays) != [layout(template)]:
            raise WireError("parameter names")
        (row,) = arrays.values()
        size = _size(template)
        return _split(_expected(row, np.broadcast_to(np.float32(0), (size,))), _shapes(template))
    if list(arrays) != list(template):
        raise WireError("parameter names")
    return {
        name: _expected(arrays[name], expected, at_most=name == SQUEEZED)
        for name, expected in template.items()
    }


def unpacked(arrays: Mapping[str, Array], types: Types = FLOAT32) -> dict[str, NDArray[Any]]:
    """Arrays that are as the record says: a row of float32, or arrays of the other types.

    Raises:
        WireError: they are not.
    """
    if types != FLOAT32:
        return {name: _read(array, types) for name, array in arrays.items()}
    found: dict[str, NDArray[Any]] = {}
    for name, array in arrays.items():
        shapes, row = _laid_out(name), _read(array, FLOAT32)
        if row.shape != (sum(math.prod(shape) for _, shape in shapes),):
            raise WireError("parameter size")
        found |= _split(row, shapes)
    return found


def found(arrays: Mapping[str, Array]) -> dict[str, NDArray[Any]]:
    """Arrays that were kept as they travel: rows of float32 by their layout, and any others by their names."""
    is_row = len(arrays) == 1 and next(iter(arrays)).startswith("[")
    return unpacked(arrays, FLOAT32 if is_row else ENCODED)


def numbers(array: Array) -> NDArray[Any]:
    """All numbers of an array that :func:`packed` made, in a row."""
    return _read(array, ENCODED).reshape(-1)


def layout(arrays: Mapping[str, NDArray[Any]]) -> str:
    """Names and shapes, as the name of the row of all their numbers."""
    return _layout(_shapes(arrays))


@lru_cache(64)
def _layout(shapes: Shapes) -> str:
    return json.dumps(shapes, separators=(",", ":"))


@lru_cache(64)
def _laid_out(text: str) -> Shapes:
    try:
        shapes = tuple((name, tuple(shape)) for name, shape in json.loads(text))
    except (ValueError, TypeError, RecursionError):
        raise WireError("parameter names") from None
    for name, shape in shapes:
        if not isinstance(name, str) or any(type(size) is not int or size < 0 for size in shape):
            raise WireError("parameter names")
    if len(dict(shapes)) != len(shapes):
        raise WireError("parameter names")
    return shapes


def _shapes(arrays: Mapping[str, NDArray[Any]]) -> Shapes:
    return tuple((name, array.shape) for name, array in arrays.items())


def _size(arrays: Mapping[str, NDArray[Any]]) -> int:
    return sum(array.size for array in arrays.values())


def _is_row(arrays: Mapping[str, NDArray[Any]]) -> bool:
    return bool(arrays) and all(array.dtype == np.float32 for array in arrays.values())


def _split(row: NDArray[Any], shapes: Shapes) -> dict[str, NDArray[Any]]:
    """Views of the row in these shapes."""
    ends = np.cumsum([0, *(math.prod(shape) for _, shape in shapes)]).tolist()
    return {
        name: row[first:last].reshape(shape)
        for (name, shape), (first, last) in zip(shapes, pairwise(ends), strict=True)
    }


def _array_of(parts: Iterable[NDArray[Any]], shape: tuple[int, ...]) -> Array:
    """The parts' numbers behind each other, as ``numpy.save`` lays them out, with one copy of them."""
    parts = list(parts)
    numbers = (np.ascontiguousarray(part).reshape(-1).view(np.uint8).data for part in parts)
    return _flower(parts[0].dtype, shape, b"".join((_npy_header(parts[0].dtype, shape), *numbers)))


def _npy_header(kind: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    header = io.BytesIO()
    form = {"descr": np.lib.format.dtype_to_descr(kind), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, form)
    return header.getvalue()


def _carried(arrays: Arrays, shape: tuple[int, ...]) -> Array:
    """The arrays' numbers behind each other, as one array of Flower's."""
    behind = _row_behind(arrays)
    if behind is None or (isinstance(behind, Filed) and behind.size < LEAST_BYTES):
        return _array_of(arrays.values(), shape)
    return _flower(next(iter(arrays.values())).dtype, shape, behind)


def _flower(kind: Any, shape: tuple[int, ...], data: bytes | memoryview) -> Array:
    """Flower's constructor refuses data that are not bytes; what it does with them later takes both."""
    stype = FILED if isinstance(data, Filed) else _NPY
    array = Array(dtype=str(np.dtype(kind)), shape=shape, stype=stype, data=b"")
    array.data = data  # type: ignore[assignment]
    return array


def _row_behind(arrays: Arrays) -> bytes | memoryview | None:
    """The NPY buffer, or the numbers in a file, of which the arrays are one part after the other, and all, where there is one."""
    filled = [array for array in arrays.values() if array.size]
    whole = _whole_behind(filled[0]) if filled else None
    row, data = (None, None) if whole is None else _row_and_data(whole, filled[0].dtype)
    if row is None or row.dtype != filled[0].dtype or row.size != _size(arrays):
        return None
    place = _address(row)
    for array in filled:
        if not array.flags.c_contiguous or _address(array) != place or _whole_behind(array) is not whole:
            return None
        place += array.nbytes
    return data


def _row_and_data(
    whole: NDArray[Any], kind: np.dtype[Any]
) -> tuple[NDArray[Any], bytes | memoryview] | tuple[None, None]:
    """The row that an array at the bottom of others is, or is laid out in, and what it travels as."""
    if whole.base is None and whole.dtype == np.uint8 and kind == np.float32:
        data = whole.data.toreadonly()
        try:
            return _read(_flower(kind, (), data), FLOAT32), data
        except WireError:
            return None, None
    behind = _data_behind(whole)
    return (None, None) if behind is None else (whole, behind)


def _whole_behind(array: NDArray[Any]) -> NDArray[Any]:
    """The array of which this one is a part."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


def _data_behind(row: NDArray[Any]) -> bytes | None:
    """What the row was read from, if it was from all of it."""
    if not isinstance(row.base, bytes):
        return filed_behind(row)
    try:
        read = _read(_flower(row.dtype, (row.size,), row.base), frozenset({row.dtype}))
    except WireError:
        return None
    return row.base if read.shape == (row.size,) and _address(read) == _address(row) else None


def _address(array: NDArray[Any]) -> int:
    place: int = array.__array_interface__["data"][0]
    return place


def _expected(array: Array, expected: NDArray[Any], *, at_most: bool = False) -> NDArray[Any]:
    """Decode an array like the expected one; sizes are compared before anything is read. ``at_most``: it is a row, and may be
    shorter."""
    data, around = array.data, 0 if array.stype == FILED else _HEADER_LIMIT
    size = data.size if isinstance(data, Filed) else len(data)
    if size > expected.nbytes + around or (size < expected.nbytes and not at_most):
        raise WireError("parameter size")
    return _read(array, frozenset({expected.dtype}), None if at_most else expected.shape)


def _read(array: Array, types: Types, expected: tuple[int, ...] | None = None) -> NDArray[Any]:
    """Decode one NPY buffer, which may be mapped, or show the numbers of one file.

    Raises:
        WireError: it is none, or not of these types, or not of the expected shape.
    """
    data = array.data
    if array.stype == FILED and isinstance(data, Filed):
        begins, size = 0, data.size
        shape, fortran, kind = array.shape, False, _kind(array.dtype, types)
    elif array.stype == _NPY and isinstance(data, bytes | memoryview):
        begins, size = _PREAMBLE + int.from_bytes(data[_PREAMBLE - 2 : _PREAMBLE], "little"), len(data)
        if not begins <= min(size, _PREAMBLE + _HEADER_LIMIT):
            raise WireError("parameter encoding")
        shape, fortran, kind = _header(bytes(data[:begins]))
    else:
        raise WireError("parameter encoding")
    if kind not in types or (fortran and len(shape) > 1):
        raise WireError("parameter type")
    if expected is not None and shape != expected:
        raise WireError("parameter shape")
    if any(type(side) is not int or side < 0 for side in shape):
        raise WireError("parameter shape")
    if size - begins != math.prod(shape) * kind.itemsize:
        raise WireError("parameter size")
    flat = data.numbers(kind) if isinstance(data, Filed) else np.frombuffer(data, kind, offset=begins)
    return flat.reshape(shape)


def _kind(name: str, types: Types) -> np.dtype[Any]:
    """Of a name that may be anything, the type if it is one of these."""
    found = {str(kind): kind for kind in types}.get(name)
    if found is None:
        raise WireError("parameter type")
    return found


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
