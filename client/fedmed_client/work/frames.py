"""What passes between link and worker: one line of JSON that announces, then the bytes of a Flower message in pieces."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from flwr.app import Message
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Message as ProtoMessage

from fedmed_common.errors import WireError

CARRY, CANCEL = "/fedmed.Worker/Carry", "/fedmed.Worker/Cancel"
_PIECE = 1 << 20
_LONGEST_SOCKET = 100


def socket_path(home: Path) -> Path:
    """The worker's socket. A path that the system would not take is replaced by a short one, of this user and home alone."""
    path = home.absolute() / "run" / "worker.sock"
    if len(os.fsencode(path)) <= _LONGEST_SOCKET:
        return path
    digest = hashlib.sha256(os.fsencode(home.resolve())).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"fedmed-{os.getuid()}-{digest}" / "worker.sock"


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
