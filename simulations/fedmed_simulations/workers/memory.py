"""Arrays between processes of one machine, in memory without a name.

It belongs to whoever holds it open or has it mapped: when the last of these processes ends, however it ends, the kernel frees it.
There is nothing in ``/dev/shm`` that could be left behind, and a container's limit on that folder is none on this.
"""

from __future__ import annotations

import mmap
import os
import socket
import tempfile
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from typing import BinaryIO

ALIGNMENT = 64
_SIGN = b"m"


def written(parts: Sequence[bytes]) -> BinaryIO:
    """Memory that holds the parts one after the other, each from a multiple of 64 bytes on."""
    file = _nameless()
    file.writelines(_padded(parts))
    file.flush()
    return file


def joined(parts: Sequence[bytes]) -> bytes:
    """The parts in the same places, as one value."""
    return b"".join(_padded(parts))


def hand_over(connection: Connection, file: BinaryIO, sizes: Sequence[int]) -> None:
    """Let the process at the other end have the memory; nothing is sent where the parts are empty."""
    if any(sizes):
        with _socket_of(connection) as line:
            socket.send_fds(line, [_SIGN], [file.fileno()])


def taken_over(connection: Connection, sizes: Sequence[int]) -> list[memoryview]:
    """The parts that the process at the other end hands over, mapped and not to be changed; as long as one of them is used.

    Raises:
        EOFError: the other end is gone.
    """
    if not any(sizes):
        return [memoryview(b"") for _ in sizes]
    with _socket_of(connection) as line:
        _, descriptors, _, _ = socket.recv_fds(line, len(_SIGN), 1)
    if not descriptors:
        raise EOFError
    try:
        return cut(memoryview(mmap.mmap(descriptors[0], 0, prot=mmap.PROT_READ)), sizes)
    finally:
        os.close(descriptors[0])


def cut(whole: memoryview, sizes: Sequence[int]) -> list[memoryview]:
    """The parts of such memory."""
    parts, start = [], 0
    for size in sizes:
        parts.append(whole[start : start + size])
        start += size + -size % ALIGNMENT
    return parts


def _socket_of(connection: Connection) -> socket.socket:
    return socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, fileno=os.dup(connection.fileno()))


def _padded(parts: Sequence[bytes]) -> Iterator[bytes]:
    for part in parts:
        yield part
        yield bytes(-len(part) % ALIGNMENT)


def _nameless() -> BinaryIO:
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("fedmed"), "w+b")
    return tempfile.TemporaryFile()
