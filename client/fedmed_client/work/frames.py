"""What passes between link and worker: one line of JSON that announces, then the bytes of a Flower message in pieces."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

from flwr.app import Message
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Message as ProtoMessage

from fedmed_common.errors import WireError

SERVICE = "fedmed.Worker"
CARRY, CANCEL = f"/{SERVICE}/Carry", f"/{SERVICE}/Cancel"
_PIECE = 1 << 20


def address(socket: Path) -> str:
    """A Unix socket as gRPC names it."""
    return f"unix:{quote(str(socket))}"


def pieces(message: Message, **fields: int | str) -> Iterator[bytes]:
    """A message as frames; ``fields`` go into the frame that announces it."""
    content = message_to_proto(message).SerializeToString()
    yield head(size=len(content), **fields)
    for start in range(0, len(content), _PIECE):
        yield content[start : start + _PIECE]


def head(**fields: int | str) -> bytes:
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


def joined(frames: Iterable[bytes], size: int) -> Message:
    """The message in the frames that follow its announcement; takes no more of them than it needs.

    Raises:
        WireError: there are fewer or more bytes than announced.
    """
    content, more = bytearray(), iter(frames)
    while len(content) < size and (frame := next(more, None)) is not None:
        content += frame
    if len(content) != size:
        raise WireError("frame")
    return message_from_proto(ProtoMessage.FromString(bytes(content)))
