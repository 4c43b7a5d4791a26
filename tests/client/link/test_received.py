"""Numbers that come with an order: those that it names, whole, or the order is not carried out; and no more of them are kept."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, RecordDict
from flwr.app.metadata import Metadata

from fedmed_client.link import received
from fedmed_client.link.received import Incoming, Received
from fedmed_common.errors import WireError
from fedmed_common.wire_arrays import layout, unpacked
from fedmed_common.wire_files import FILED, Part, digest_of, filed_in

ARRAYS = {f"{n}": np.full((300, 100), n, np.float32) for n in range(4)}


def _message(*names: str, **changes: Any) -> Message:
    record = RecordDict(
        {name: ArrayRecord({layout(_one(name)): _reference(name, **changes)}) for name in names}
    )
    fields: dict[str, Any] = {"run_id": 1, "message_id": "a" * 64, "src_node_id": 1, "dst_node_id": 2}
    fields |= {
        "reply_to_message_id": "",
        "group_id": "",
        "message_type": "train",
        "ttl": 5.0,
        "created_at": 0.0,
    }
    return Message(content=record, metadata=Metadata(**fields))  # type: ignore[call-overload, no-any-return]


def _one(name: str) -> dict[str, np.ndarray]:
    return {name: ARRAYS[name]}


def _reference(name: str, **changes: Any) -> Array:
    digest = digest_of([ARRAYS[name]]).encode()
    fields = {"dtype": "float32", "shape": (30_000,), "stype": FILED, "data": digest, **changes}
    return Array(**fields)


class _Server:
    """Gives what it has, in two pieces; ``spoil`` may make something else of it."""

    def __init__(self, spoil: Callable[[bytes], bytes] = lambda content: content) -> None:
        self.content = {digest_of([array]): array.tobytes() for array in ARRAYS.values()}
        self.asked: list[str] = []
        self._spoil = spoil

    def fetch(self, part: Part, incoming: Incoming) -> None:
        self.asked.append(part.digest)
        content = self._spoil(self.content[part.digest])
        for piece in (content[:1000], content[1000:]):
            incoming.take(piece)


def test_an_order_gets_its_numbers_and_those_it_had_are_not_fetched_again(tmp_path: Path) -> None:
    server = _Server()
    folder = Received(tmp_path / "received", server.fetch)
    whole = folder.complete(_message("0", "1"))
    for name in ("0", "1"):
        record = whole.content[name]
        assert isinstance(record, ArrayRecord)
        np.testing.assert_array_equal(unpacked(record)[name], ARRAYS[name])
    for names in (("1", "2"), ("2",), ("0",)):
        again = folder.complete(_message(*names))
    assert len(server.asked) == 4
    assert sorted(file.name for file in (tmp_path / "received").iterdir()) == sorted(
        digest_of([ARRAYS[name]]) for name in ("2", "0")
    )
    assert [numbers.is_whole() for numbers in filed_in(again.content).values()] == [True]
    Received(tmp_path / "received", server.fetch)
    assert not (tmp_path / "received").exists()


@pytest.mark.parametrize(
    "spoil", [lambda content: content[:-1] + b"x", lambda content: content[:-4], lambda content: content * 2]
)
def test_other_numbers_are_never_shown(tmp_path: Path, spoil: Callable[[bytes], bytes]) -> None:
    folder = Received(tmp_path / "received", _Server(spoil).fetch)
    with pytest.raises(WireError, match="not those the order names"):
        folder.complete(_message("0"))
    assert list((tmp_path / "received").iterdir()) == []


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path) -> None:
    def full(_part: Part, incoming: Incoming) -> None:
        incoming.take(b"some")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OSError, match="No space"):
        Received(tmp_path / "received", full).complete(_message("0"))
    assert list((tmp_path / "received").iterdir()) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"data": b"../../site.key"},
        {"data": b"0" * 63},
        {"data": "\u0660".encode() * 32},
        {"data": b"\xff" * 64},
        {"dtype": "object"},
        {"dtype": "float64"},
        {"shape": (-1,)},
        {"shape": (1,) * 9},
    ],
)
def test_what_names_no_numbers_is_no_order(tmp_path: Path, changes: dict[str, Any]) -> None:
    server = _Server()
    with pytest.raises(WireError):
        Received(tmp_path / "received", server.fetch).complete(_message("0", **changes))
    assert server.asked == []


def test_more_than_an_order_may_have_is_not_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(received, "LARGEST_ORDER_BYTES", 2 * 120_000 - 1)
    server = _Server()
    folder = Received(tmp_path / "received", server.fetch)
    folder.complete(_message("0"))
    with pytest.raises(WireError, match="larger than"):
        folder.complete(_message("0", "1"))
    assert len(server.asked) == 1
