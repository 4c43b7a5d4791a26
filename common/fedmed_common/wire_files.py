"""Large arrays of the wire. Their numbers lie in a file, and the array in Flower's message holds their digest in its place.

The numbers go beside Flower's messages, from file to file: no process holds them to pass them on. What crosses with an array is
its type, its shape and the SHA-256 of its numbers, row by row in the machine's order (little-endian); nothing else.
"""

from __future__ import annotations

import hashlib
import math
import mmap
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, RecordDict
from numpy.typing import NDArray

from fedmed_common.errors import WireError

FILED = "fedmed.file"
"""Flower's word for how an array is encoded, where its numbers lie in a file."""

LEAST_BYTES = 2**16
"""Of an array that goes beside the message. Inside, a smaller one costs about as many requests."""

CHUNK_BYTES = 2**20
"""What a process that passes numbers on holds of them."""

UP_BYTES, DOWN_BYTES = 6 * 2**20, 16 * 2**20
"""Of one request. No more goes up than a proxy lets through that was set up for Flower's own requests."""

HELD_HEADER = "fedmed-held"
PREFIX = "/v1/fleet/bulk/"
_PATH = re.compile(
    PREFIX + r"([0-9]{1,20})/([0-9a-f]{64})/([0-9a-f]{64})/([0-9]{1,15})/([0-9]{1,15})-([0-9]{1,15})",
    re.ASCII,
)
_DIGEST = re.compile(r"[0-9a-f]{64}", re.ASCII)
_ITEM_BYTES = {"float32": 4, "uint32": 4, "uint16": 2, "uint8": 1, "int8": 1}
_MOST_DIMENSIONS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """An array's numbers on their way with a message of a Flower run: ``message`` is the order's, in both directions."""

    run: int
    message: str
    digest: str
    size: int

    def path(self, begin: int, end: int) -> str:
        """Where bytes ``begin`` to ``end`` are asked for or sent. All that matters is in it, so that the signature covers it."""
        return f"{PREFIX}{self.run}/{self.message}/{self.digest}/{self.size}/{begin}-{end}"


def parse_path(path: str) -> tuple[Part, int, int] | None:
    """What :meth:`Part.path` made; None of what it did not."""
    found = _PATH.fullmatch(path)
    if found is None:
        return None
    run, message, digest, size, begin, end = found.groups()
    part = Part(run=int(run), message=message, digest=digest, size=int(size))
    if not int(begin) <= int(end) <= part.size or part.path(int(begin), int(end)) != path:
        return None
    return part, int(begin), int(end)


class Filed(bytes):
    """The digest of numbers that lie in a file, which is open: whoever deletes or replaces it takes nothing away from here.

    To Flower it is the digest's 64 letters. ``path``: where the file was opened; ``begins``, ``size``: where in it, in bytes.
    """

    path: Path
    begins: int
    size: int
    _descriptor: int

    @classmethod
    def open(cls, path: Path, digest: str, size: int, begins: int = 0) -> Filed:
        """Numbers in a file. Whether they have the digest is not looked at.

        Raises:
            OSError: there is no such file.
            WireError: it is shorter than that.
        """
        made = cls(digest.encode())
        made.path, made.begins, made.size = path, begins, size
        made._descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        if os.fstat(made._descriptor).st_size < begins + size:
            raise WireError("a file of numbers is too short")
        return made

    def __del__(self) -> None:
        with suppress(AttributeError):
            os.close(self._descriptor)

    @property
    def digest(self) -> str:
        """SHA-256 of the numbers."""
        return self.decode()

    def chunks(self, begin: int, end: int) -> Iterator[bytes]:
        """The bytes from ``begin`` to ``end``, a chunk at a time.

        Raises:
            WireError: the file has become shorter.
        """
        while begin < end:
            chunk = os.pread(self._descriptor, min(CHUNK_BYTES, end - begin), self.begins + begin)
            if not chunk:
                raise WireError("a file of numbers is too short")
            yield chunk
            begin += len(chunk)

    def is_whole(self) -> bool:
        """Whether the numbers have the digest."""
        digest = hashlib.sha256()
        for chunk in self.chunks(0, self.size):
            digest.update(chunk)
        return digest.hexdigest() == self.digest

    def numbers(self, kind: np.dtype[Any]) -> NDArray[Any]:
        """All numbers in a row, read-only. They are the file's pages: memory that is anyone's who needs it."""
        if not self.size:
            return np.zeros(0, kind)
        mapped = _Mapped(self._descriptor, 0, access=mmap.ACCESS_READ)
        mapped.filed = self
        return np.frombuffer(mapped, kind, count=self.size // kind.itemsize, offset=self.begins)


class _Mapped(mmap.mmap):
    """Knows whose numbers it maps; not the other way round, for a cycle of references keeps memory."""

    filed: Filed


def filed_behind(array: NDArray[Any]) -> Filed | None:
    """Whose numbers the array shows, where they lie in a file."""
    behind: object = array.base
    while isinstance(behind, np.ndarray):
        behind = behind.base
    if isinstance(behind, memoryview):
        behind = behind.obj
    return behind.filed if isinstance(behind, _Mapped) else None


def digest_of(parts: Iterable[NDArray[Any]]) -> str:
    """The digest of the numbers of the parts behind each other."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(np.ascontiguousarray(part).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def reference(array: Array) -> tuple[str, int] | None:
    """Digest and size in bytes of an array whose numbers lie elsewhere; None of one that holds its own.

    Raises:
        WireError: it is neither.
    """
    if array.stype != FILED:
        return None
    try:
        digest = array.data.decode("ascii")
    except UnicodeDecodeError:
        raise WireError("parameter encoding") from None
    if _DIGEST.fullmatch(digest) is None or array.dtype not in _ITEM_BYTES:
        raise WireError("parameter encoding")
    if len(array.shape) > _MOST_DIMENSIONS or any(type(side) is not int or side < 0 for side in array.shape):
        raise WireError("parameter shape")
    return digest, math.prod(array.shape) * _ITEM_BYTES[array.dtype]


def references(content: RecordDict) -> dict[str, int]:
    """Of a message that came: by digest, how many bytes belong to it.

    Raises:
        WireError: what refers to them is malformed.
    """
    found: dict[str, int] = {}
    for record in array_records(content).values():
        for array in record.values():
            named = reference(array)
            if named is not None and found.setdefault(*named) != named[1]:
                raise WireError("parameter size")
    return found


def filed_in(content: RecordDict) -> dict[str, Filed]:
    """Of a message that goes: by digest, the numbers that go beside it."""
    arrays = [array.data for record in array_records(content).values() for array in record.values()]
    return {data.digest: data for data in arrays if isinstance(data, Filed)}


def located(content: RecordDict, files: Mapping[str, Filed]) -> RecordDict:
    """The content whose arrays know where their numbers lie here."""
    return with_arrays(content, lambda array: _located(array, files))


def _located(array: Array, files: Mapping[str, Filed]) -> Array:
    named = reference(array)
    if named is None:
        return array
    return Array(dtype=array.dtype, shape=array.shape, stype=FILED, data=files[named[0]])


def with_arrays(content: RecordDict, change: Callable[[Array], Array]) -> RecordDict:
    """The content with other arrays."""
    changed = RecordDict(dict(content))
    for name, record in array_records(content).items():
        changed[name] = ArrayRecord({key: change(array) for key, array in record.items()})
    return changed


def array_records(content: RecordDict) -> dict[str, ArrayRecord]:
    """By name. Flower's own view of them leaves a cycle of references, which keeps a whole model in memory."""
    return {name: record for name, record in content.items() if isinstance(record, ArrayRecord)}
