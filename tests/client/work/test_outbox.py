"""Sealed replies: found by what was asked, equal to the bit, and no more of them than are asked for."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from fedmed_client.work.outbox import Outbox
from fedmed_common import wire
from fedmed_common.metrics import Mean
from fedmed_common.receipts import Receipt


@pytest.fixture
def order() -> wire.Order:
    return wire.Order(
        kind=wire.Kind.TRAIN,
        run="run",
        round=3,
        attempt=0,
        experiment="{}",
        parameters={"b": np.ones((2, 3), np.float32), "a": np.zeros((), np.float32)},
    )


@pytest.fixture
def reply() -> wire.Reply:
    return wire.Reply(
        site="alpha",
        run="run",
        round=3,
        attempt=0,
        delta={
            "b": np.array([[0.1, -0.0, np.nan], [1e-45, 1e38, 2.0]], np.float32),
            "a": np.array(0.3, np.float32),
        },
        metrics={"loss": Mean(0.1 + 0.2, 3.0)},
        seconds={"train": 1 / 3, "site": 0.7},
    )


def test_all_that_a_reply_can_hold_is_sealed(tmp_path: Path, order: wire.Order, reply: wire.Reply) -> None:
    """But for refusals and facts, which are never sealed, and what a region says, which no hospital does."""
    whole = replace(
        reply,
        sums={"c": np.ones(2, np.float32)},
        scalars={"x": 0.25},
        epsilon_spent=0.5,
        receipt=Receipt(sequence=3, mac="0a" * 32),
        masked=np.array([1, 2**32 - 1], np.uint32),
        secure='{"mark":"0f"}',
    )
    blank = wire.Reply(site="", run="", round=0, attempt=0)
    same = {
        field.name for field in fields(wire.Reply) if getattr(whole, field.name) is getattr(blank, field.name)
    }
    assert same - {"attempt"} == {"code", "rule", "incident", "facts", "region"}
    Outbox(folder=tmp_path).seal(order, whole)
    found = Outbox(folder=tmp_path).find(order)
    assert found is not None
    assert _records(found) == _records(whole)


def _records(reply: wire.Reply) -> list[tuple[str, bytes]]:
    return [(name, record.deflate()) for name, record in wire.pack_reply(reply).items()] + [
        (name, array.tobytes()) for name, array in reply.delta.items()
    ]


@pytest.mark.parametrize("with_delta", [True, False])
def test_what_is_found_is_what_was_sealed(
    tmp_path: Path, order: wire.Order, reply: wire.Reply, with_delta: bool
) -> None:
    outbox = Outbox(folder=tmp_path / "outbox")
    sealed = reply if with_delta else replace(reply, delta={})
    assert outbox.find(order) is None
    outbox.seal(order, sealed)
    found = outbox.find(replace(order, attempt=4))
    assert found is not None
    assert _records(found) == _records(replace(sealed, attempt=4))


def test_only_what_was_asked_finds_it(tmp_path: Path, order: wire.Order, reply: wire.Reply) -> None:
    outbox = Outbox(folder=tmp_path, terms="a")
    outbox.seal(order, reply)
    others = [
        replace(order, run="other"),
        replace(order, round=4),
        replace(order, kind=wire.Kind.EVALUATE),
        replace(order, split="test"),
        replace(order, experiment="{ }"),
        replace(order, parameters={**order.parameters, "a": np.ones((), np.float32)}),
        replace(order, parameters={"c": order.parameters["b"], "a": order.parameters["a"]}),
        replace(order, parameters={**order.parameters, "b": np.ones((3, 2), np.float32)}),
    ]
    assert [outbox.find(other) for other in others] == [None] * len(others)
    assert replace(outbox, terms="b").find(order) is None
    assert outbox.find(order) is not None


def test_of_a_run_the_newest_two_rounds_stay_and_of_runs_the_newest(
    tmp_path: Path, order: wire.Order, reply: wire.Reply
) -> None:
    outbox = Outbox(folder=tmp_path)
    for number in range(1, 5):
        for kind in (wire.Kind.TRAIN, wire.Kind.EVALUATE):
            outbox.seal(replace(order, round=number, kind=kind), reply)
    kept = [number for number in range(1, 5) if outbox.find(replace(order, round=number)) is not None]
    assert kept == [3, 4]
    assert len(list(tmp_path.rglob("*.safetensors"))) == 4
    outbox.seal(replace(order, round=1), reply)
    assert outbox.find(replace(order, round=1)) is not None
    for number in range(5, 9):
        outbox.seal(replace(order, round=number, kind=wire.Kind.EVALUATE), reply)
    assert outbox.find(replace(order, round=4)) is not None
    for number in range(20):
        outbox.seal(replace(order, run=f"run {number}"), reply)
    assert len(list(tmp_path.iterdir())) == 16


def test_what_a_killed_seal_left_goes_with_the_next(
    tmp_path: Path, order: wire.Order, reply: wire.Reply
) -> None:
    outbox = Outbox(folder=tmp_path)
    outbox.seal(order, reply)
    (sealed,) = tmp_path.rglob("*.safetensors")
    sealed.with_name(f".{sealed.name}.123.tmp").write_bytes(b"half")
    outbox.seal(replace(order, kind=wire.Kind.EVALUATE), reply)
    assert [file for file in tmp_path.rglob("*") if file.suffix == ".tmp"] == []


@pytest.mark.parametrize("content", [b"", b"\0" * 64, b"{}", None])
def test_a_damaged_reply_counts_as_none(
    tmp_path: Path, order: wire.Order, reply: wire.Reply, content: bytes | None
) -> None:
    outbox = Outbox(folder=tmp_path)
    outbox.seal(order, reply)
    (file,) = tmp_path.rglob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-5] if content is None else content)
    assert outbox.find(order) is None
    outbox.seal(order, reply)
    assert outbox.find(order) is not None
