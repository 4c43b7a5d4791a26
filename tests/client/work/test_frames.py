"""A message in pieces is the message, whatever it holds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Error, Message
from flwr.common.serde import message_to_proto

from fedmed_client.work import frames
from fedmed_common.errors import WireError

HERE = Path(__file__).parent
Ask = Callable[..., Message]


def _bytes(message: Message) -> bytes:
    return message_to_proto(message).SerializeToString(deterministic=True)


@pytest.fixture
def message(ask: Ask) -> Message:
    """With an array larger than a piece, one of no dimension and one of nothing."""
    message = ask()
    arrays = {
        "large": np.random.default_rng(0).random((600, 1000), np.float32),
        "scalar": np.array(1.5, np.float32),
        "none": np.zeros((0, 3), np.float32),
    }
    message.content["parameters"] = ArrayRecord({name: Array(array) for name, array in arrays.items()})
    return message


def test_a_message_in_pieces_is_the_message(message: Message) -> None:
    first, *rest = frames.pieces(message, HERE, order="x")
    announced = frames.read_head(first)
    assert announced["order"] == "x"
    assert max(map(len, rest)) <= 1 << 20 < sum(map(len, rest))
    again = frames.joined(announced, iter(rest), HERE)
    assert _bytes(again) == _bytes(message)
    assert list(again.content["parameters"]) == ["large", "scalar", "none"]
    assert list(again.content) == list(message.content)


def test_a_message_of_an_error_alone_passes(message: Message) -> None:
    failed = Message(Error(code=3), reply_to=message)
    first, *rest = frames.pieces(failed, HERE)
    assert _bytes(frames.joined(frames.read_head(first), rest, HERE)) == _bytes(failed)


@pytest.mark.parametrize("change", [lambda rest: rest[:-1], lambda rest: rest[1:], lambda rest: [b"", *rest]])
def test_a_message_with_bytes_missing_is_none(
    message: Message, change: Callable[[list[bytes]], list[bytes]]
) -> None:
    first, *rest = frames.pieces(message, HERE)
    with pytest.raises(WireError):
        frames.joined(frames.read_head(first), change(rest), HERE)


@pytest.mark.parametrize("frame", [b"", b"[]", b"\xff", b"{"])
def test_what_announces_nothing_is_refused(frame: bytes) -> None:
    with pytest.raises(WireError):
        frames.read_head(frame)
