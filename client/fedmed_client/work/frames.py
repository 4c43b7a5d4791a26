"""What passes between link and worker: a line of JSON that announces, then a Flower message in pieces.

The message without the bytes of its arrays goes first, as Flower serialises it; the bytes of the arrays follow as they are. Of
an array whose numbers lie in a file only the place is told, below the folder that both sides know: neither side reads any
other file for the other.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

from flwr.app import Array, ArrayRecord, Message, RecordDict
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Message as ProtoMessage

from fedmed_common.errors import WireError
from fedmed_common.wire_files import Filed

SERVICE = "fedmed.Worker"
CARRY, CANCEL = f"/{SERVICE}/Carry", f"/{SERVICE}/Cancel"
_PIECE = 1 << 20


def address(socket: Path) -> str:
    """A Unix socket as gRPC names it."""
    return f"unix:{quote(str(socket))}"


def head(**fields: object) -> bytes:
    """A frame that announces."""
    return json.dumps(fields).encode()


def read_head(frame: bytes) -> dict[str, Any]:
    """What a frame announces.

    Raises:
        WireError: it is no such frame.
    """
    try:
        fields = json.loads(frame)
    except ValueError:
        fields = None
    if not isinstance(fields, dict):
        raise WireError("frame")
    return fields


def pieces(message: Message, folder: Path, **fields: str) -> Iterator[bytes]:
    """A message as frames; ``fields`` go into the one that announces it. ``folder``: where its arrays' files lie."""
    drawn, arrays = outline(message), data_of(message)
    files = [_place(data, folder) for data in arrays]
    yield head(**fields, size=len(drawn), arrays=[len(data) for data in arrays], files=files)
    for part in (drawn, *arrays):
        for start in range(0, len(part), _PIECE):
            yield part[start : start + _PIECE]


def joined(announced: dict[str, Any], following: Iterable[bytes], folder: Path) -> Message:
    """The message that was announced, out of the frames that follow; takes no more of them than it needs.

    Raises:
        WireError: there are fewer or more bytes than announced, or a file is not there.
    """
    take = _taking(iter(following))
    drawn = take(announced["size"])
    parts = zip(announced["arrays"], announced["files"], strict=True)
    return filled(drawn, (_opened(take(size), place, folder) for size, place in parts))


def _place(data: bytes, folder: Path) -> tuple[str, int, int] | None:
    if not isinstance(data, Filed):
        return None
    return str(data.path.relative_to(folder)), data.begins, data.size


def _opened(data: bytes, place: tuple[str, int, int] | None, folder: Path) -> bytes:
    if place is None:
        return data
    name, begins, size = place
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise WireError("frame")
    try:
        return Filed.open(path, data.decode(), size, begins)
    except OSError as error:
        raise WireError(f"frame: {error.strerror}") from None


def outline(message: Message) -> bytes:
    """The message without the bytes of its arrays."""
    if message.has_content():
        content = RecordDict(dict(message.content))
        for name, record in array_records(message).items():
            content[name] = ArrayRecord({key: _empty(array) for key, array in record.items()})
        message = Message(content=content, metadata=message.metadata)  # type: ignore[call-overload]
    without: bytes = message_to_proto(message).SerializeToString()
    return without


def data_of(message: Message) -> list[bytes]:
    """The bytes of the message's arrays, in the order in which :func:`filled` takes them."""
    return [array.data for record in array_records(message).values() for array in record.values()]


def filled(outline: bytes, data: Iterable[bytes | memoryview]) -> Message:
    """The message of an outline with the bytes of its arrays, which may be mapped: Flower's own constructor refuses these."""
    message = message_from_proto(ProtoMessage.FromString(outline))
    arrays = [array for record in array_records(message).values() for array in record.values()]
    for array, part in zip(arrays, data, strict=True):
        array.data = part  # type: ignore[assignment]
    return message


def array_records(message: Message) -> dict[str, ArrayRecord]:
    """By name. Flower's own view of them leaves a cycle of references, which keeps a whole model in memory."""
    content = message.content if message.has_content() else RecordDict()
    return {name: record for name, record in content.items() if isinstance(record, ArrayRecord)}


def _empty(array: Array) -> Array:
    return Array(dtype=array.dtype, shape=array.shape, stype=array.stype, data=b"")


def _taking(frames: Iterator[bytes]) -> Callable[[int], bytes]:
    """A function that gives the next so many bytes; the announced ends of parts are ends of frames."""

    def take(size: int) -> bytes:
        whole = io.BytesIO()
        while size > 0:
            frame = next(frames, b"")
            whole.write(frame)
            size -= len(frame) or size + 1
        if size:
            raise WireError("frame")
        return whole.getvalue()

    return take
