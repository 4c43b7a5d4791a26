"""A message is put together from objects that the server names; what is no message, or too much, is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, Metadata, RecordDict
from flwr.app.message.message import make_message
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree

from fedmed_client.link import messages
from fedmed_client.link.messages import Announced, inflate
from fedmed_common.errors import WireError


def announced(size: int = 1000) -> tuple[Announced, dict[str, bytes]]:
    """A message of one array of zeros, whose chunks are all the same, and its objects."""
    content = RecordDict(
        {
            "order": ConfigRecord({"run": "r"}),
            "parameters": ArrayRecord({"w": Array(np.zeros(size, np.float32))}),
        }
    )
    settings: Any = {
        "run_id": 1,
        "message_id": "",
        "src_node_id": 1,
        "dst_node_id": 2,
        "reply_to_message_id": "",
        "group_id": "",
        "created_at": 1.0,
        "ttl": 9.0,
        "message_type": "train",
    }
    message = Message(content=content, metadata=Metadata(**settings))  # type: ignore[call-overload]
    objects = {name: one.deflate() for name, one in get_all_nested_objects(message).items()}
    tree = get_object_tree(message)
    message.metadata.__dict__["_message_id"] = tree.object_id
    return Announced(message=make_message(message.metadata, RecordDict()), tree=tree), objects


def test_a_message_is_put_together() -> None:
    header, objects = announced()
    assert sorted(header.objects) == sorted(objects)
    message = inflate(header, objects)
    assert message.content["order"] == ConfigRecord({"run": "r"})
    assert message.metadata is header.message.metadata
    assert objects == {}


@pytest.mark.parametrize(
    "damage", [b"", b"garbage", b"Message 00 1\x00x"], ids=["nothing", "garbage", "a lie"]
)
def test_what_cannot_be_read_is_refused(damage: bytes) -> None:
    header, objects = announced()
    for name in list(objects):
        with pytest.raises(WireError):
            inflate(header, {**objects, name: damage})


def test_what_is_missing_is_refused() -> None:
    header, objects = announced()
    for name in list(objects):
        with pytest.raises(WireError):
            inflate(header, {other: content for other, content in objects.items() if other != name})


def test_more_than_an_order_is_not_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    header, objects = announced()
    monkeypatch.setattr(messages, "MOST_OBJECTS", len(objects) - 1)
    with pytest.raises(WireError, match="more parts"):
        _ = header.objects
    monkeypatch.setattr(messages, "LARGEST_MESSAGE_BYTES", sum(map(len, objects.values())) - 1)
    fetched = messages.Fetched()
    with pytest.raises(WireError, match="larger than an order may be"):
        for content in objects.values():
            fetched.weigh(content)


def test_one_chunk_named_many_times_does_not_take_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    header, objects = announced(20 * 2**20)  # 80 MB in chunks that are all the same
    stored = sum(map(len, objects.values()))
    monkeypatch.setattr(messages, "LARGEST_MESSAGE_BYTES", 2 * stored)
    assert stored < 40e6
    with pytest.raises(WireError, match="larger than an order may be"):
        inflate(header, objects)
