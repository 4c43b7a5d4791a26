"""Hostile replies: each is refused alone, with a reason of ours, and good ones pass."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from fedmed_common import wire
from fedmed_common.errors import RejectedReply
from fedmed_common.metrics import Mean
from fedmed_server import gate

SPLITS = ("train", "validation", "test")
TEMPLATE = {"conv.weight": np.zeros((4, 3), np.float32), "conv.bias": np.zeros(4, np.float32)}
EXPECTED = gate.Expected(
    site="alpha",
    run="run-1",
    round=3,
    attempt=1,
    kind=wire.Kind.TRAIN,
    classes=("liver",),
    metrics=gate.allowed_metrics(wire.Kind.TRAIN, ("liver",), False),
    patients=20,
    steps=4,
    template=TEMPLATE,
    norm_limit=100.0,
)
DELTA = {"conv.weight": np.ones((4, 3), np.float32), "conv.bias": np.ones(4, np.float32)}


def _reply(**changes: object) -> wire.Reply:
    fields = {
        "site": "alpha",
        "run": "run-1",
        "round": 3,
        "attempt": 1,
        "delta": DELTA,
        "metrics": {"loss": Mean(2.0, 4.0)},
    }
    return wire.Reply(**{**fields, **changes})  # type: ignore[arg-type]


def _packed(**changes: object) -> RecordDict:
    return wire.pack_reply(_reply(**changes))


def _refusal(**changes: object) -> RecordDict:
    refusal = {"delta": {}, "metrics": {}, "code": "policy", "rule": "maximum_steps", "incident": "0123"}
    return _packed(**{**refusal, **changes})


def _with_arrays(arrays: dict[str, Array]) -> RecordDict:
    record = _packed()
    record["parameters"] = ArrayRecord(arrays)
    return record


def _array(value: np.ndarray, **changes: object) -> Array:
    good = Array(value)
    fields = {"dtype": good.dtype, "shape": good.shape, "stype": good.stype, "data": good.data, **changes}
    return Array(**fields)  # type: ignore[arg-type]


def _swap(name: str, array: Array) -> Callable[[], RecordDict]:
    return lambda: _with_arrays({key: array if key == name else Array(value) for key, value in DELTA.items()})


def _fortran() -> Array:
    stream = io.BytesIO()
    np.save(stream, np.asfortranarray(np.ones((4, 3), np.float32)), allow_pickle=False)
    return Array(dtype="float32", shape=(4, 3), stype="numpy.ndarray", data=stream.getvalue())


def _add_record(name: str, record: object) -> Callable[[], RecordDict]:
    def make() -> RecordDict:
        packed = _packed()
        packed[name] = record  # type: ignore[assignment]
        return packed

    return make


def _edit_reply(**fields: object) -> Callable[[], RecordDict]:
    def make() -> RecordDict:
        packed = _packed()
        packed["reply"] = ConfigRecord({**packed.config_records["reply"], **fields})  # type: ignore[arg-type]
        return packed

    return make


def _filled(value: float) -> Callable[[], RecordDict]:
    return lambda: _packed(delta={**DELTA, "conv.bias": np.full(4, value, np.float32)})


HOSTILE: dict[str, Callable[[], RecordDict]] = {
    "nan": _filled(math.nan),
    "inf": _filled(math.inf),
    "huge": _filled(1e30),
    "norm above the limit": _filled(80.0),
    "wrong shape": _swap("conv.bias", Array(np.ones(5, np.float32))),
    "broadcastable shape": _swap("conv.bias", Array(np.ones((), np.float32))),
    "same size, other shape": _swap("conv.weight", Array(np.ones((3, 4), np.float32))),
    "double precision": _swap("conv.bias", Array(np.ones(4, np.float64))),
    "half precision": _swap("conv.bias", Array(np.ones(4, np.float16))),
    "complex": _swap("conv.bias", Array(np.ones(4, np.complex64))),
    "strings": _swap("conv.bias", Array(np.array(["abcd"] * 4))),
    "big endian": _swap("conv.bias", Array(np.ones(4, ">f4"))),
    "integers of the same size": _swap("conv.bias", Array(np.ones(4, np.int32))),
    "fortran order": _swap("conv.weight", _fortran()),
    "not npy": _swap("conv.bias", _array(DELTA["conv.bias"], data=b"x" * 144)),
    "truncated": _swap("conv.bias", _array(DELTA["conv.bias"], data=Array(DELTA["conv.bias"]).data[:-1])),
    "trailing bytes": _swap(
        "conv.bias", _array(DELTA["conv.bias"], data=Array(DELTA["conv.bias"]).data + b"\0")
    ),
    "very long header": _swap(
        "conv.bias", _array(DELTA["conv.bias"], data=Array(DELTA["conv.bias"]).data + b"\0" * 4096)
    ),
    "empty bytes": _swap("conv.bias", _array(DELTA["conv.bias"], data=b"")),
    "other serialisation": _swap("conv.bias", _array(DELTA["conv.bias"], stype="pickle")),
    "missing parameter": lambda: _with_arrays({"conv.weight": Array(DELTA["conv.weight"])}),
    "extra parameter": lambda: _with_arrays(
        {**{k: Array(v) for k, v in DELTA.items()}, "extra": Array(np.ones(1, np.float32))}
    ),
    "other order of parameters": lambda: _with_arrays({k: Array(DELTA[k]) for k in reversed(DELTA)}),
    "no parameters": lambda: _packed(delta={}),
    "another site": lambda: _packed(site="beta"),
    "another run": lambda: _packed(run="run-2"),
    "an old round": lambda: _packed(round=2),
    "a stale attempt": lambda: _packed(attempt=0),
    "negative round": _edit_reply(round=-1),
    "round as text": _edit_reply(round="3"),
    "other wire version": _edit_reply(version=99),
    "site name of a million letters": _edit_reply(site="a" * 1_000_000),
    "undeclared record": _add_record("notes", ConfigRecord({"text": "a name"})),
    "second array record": _add_record("more", ArrayRecord({"x": Array(np.ones(1, np.float32))})),
    "undeclared metric": lambda: _packed(metrics={"loss/Jane Doe": Mean(1.0, 1.0)}),
    "metric nan": lambda: _packed(metrics={"loss": Mean(math.nan, 1.0)}),
    "metric with infinite weight": lambda: _packed(metrics={"loss": Mean(1.0, math.inf)}),
    "metric with negative weight": lambda: _packed(metrics={"loss": Mean(1.0, -4.0)}),
    "metric of three numbers": _add_record("metrics", MetricRecord({"loss": [1.0, 2.0, 3.0]})),
    "metric of one number": _add_record("metrics", MetricRecord({"loss": 1.0})),
    "seconds nan": lambda: _packed(seconds={"train": math.nan}),
    "seconds by a strange name": lambda: _packed(seconds={"../etc": 1.0}),
    "seconds by a name of its own": lambda: _packed(seconds={"Jane_Doe": 1.0}),
    "loss over more steps than were asked": lambda: _packed(metrics={"loss": Mean(2.0, 1e6)}),
    "loss over no step": lambda: _packed(metrics={"loss": Mean(2.0, 0.0)}),
    "refusal with a sentence for a code": lambda: _refusal(code="cannot read /data/Jane^Doe"),
    "refusal with a sentence for a rule": lambda: _refusal(rule="Jane Doe is not permitted"),
    "refusal with a sentence for an incident": lambda: _refusal(incident="see /data/Jane^Doe"),
    "refusal with results": lambda: _packed(code="policy"),
    "facts nobody asked for": lambda: _packed(
        facts=wire.Facts(patients={"train": 1}, presence={}, version="1")
    ),
    "no reply record": lambda: RecordDict({}),
}


def test_a_good_reply_passes() -> None:
    reply = gate.admit(_packed(), EXPECTED)
    assert list(reply.delta) == list(DELTA)
    np.testing.assert_array_equal(reply.delta["conv.weight"], DELTA["conv.weight"])


def test_a_refusal_passes_with_its_code_and_rule() -> None:
    reply = gate.admit(
        _packed(delta={}, metrics={}, code="policy", rule="maximum_steps", incident="0123"), EXPECTED
    )
    assert (reply.code, reply.rule, reply.incident) == ("policy", "maximum_steps", "0123")


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_reply_is_refused(name: str) -> None:
    with pytest.raises(RejectedReply) as refused:
        gate.admit(HOSTILE[name](), EXPECTED)
    assert len(str(refused.value)) < 60
    assert "Jane" not in str(refused.value)


EVALUATION = gate.Expected(
    site="alpha",
    run="run-1",
    round=3,
    attempt=1,
    kind=wire.Kind.EVALUATE,
    classes=("liver",),
    metrics=gate.allowed_metrics(wire.Kind.EVALUATE, ("liver",), False),
    patients=5,
)


@pytest.mark.parametrize(
    ("name", "mean"),
    [
        ("dice/liver", Mean(5.1, 5.0)),
        ("dice/liver", Mean(-0.5, 5.0)),
        ("dice/liver", Mean(3.0, 6.0)),
        ("false_positive/liver", Mean(2.0, 1.0)),
        ("hd95_mm/liver", Mean(1.0, 1.0)),
        ("dice/spleen", Mean(1.0, 1.0)),
        ("dice/liver", Mean(0.0, 0.0)),
    ],
)
def test_an_impossible_evaluation_is_refused(name: str, mean: Mean) -> None:
    with pytest.raises(RejectedReply):
        gate.admit(_packed(delta={}, metrics={name: mean}), EVALUATION)


def test_an_evaluation_must_not_carry_parameters() -> None:
    with pytest.raises(RejectedReply, match="undeclared parameters"):
        gate.admit(_packed(metrics={"dice/liver": Mean(4.0, 5.0)}), EVALUATION)


@given(st.binary(max_size=400))
def test_no_bytes_get_through_or_raise_anything_else(data: bytes) -> None:
    record = _swap("conv.bias", Array(dtype="float32", shape=(4,), stype="numpy.ndarray", data=data))()
    with pytest.raises(RejectedReply):
        gate.admit(record, EXPECTED)


FACTS = gate.Expected(site=None, run="run-1", round=0, attempt=0, kind=wire.Kind.FACTS, classes=("liver",))


@pytest.mark.parametrize(
    ("patients", "presence"),
    [
        ({"train": 3, "validation": 1}, {}),
        ({"train": -3, "validation": 1, "test": 1}, {}),
        ({"train": 10**12, "validation": 1, "test": 1}, {}),
        ({"train": 3, "validation": 1, "test": 1}, {"Jane Doe": 1}),
        ({"train": 3, "validation": 1, "test": 1}, {"liver": 4}),
    ],
)
def test_impossible_facts_are_refused(patients: dict[str, int], presence: dict[str, int]) -> None:
    facts = wire.Facts(patients=patients, presence=presence, version="1")
    with pytest.raises(RejectedReply):
        gate.admit(_packed(round=0, attempt=0, delta={}, metrics={}, facts=facts), FACTS)


@pytest.mark.parametrize(
    "changes",
    [
        {"site": "[/]"},
        {"site": "../../etc"},
        {"site": ""},
        {"facts": wire.Facts(patients=dict.fromkeys(SPLITS, 5), presence={}, version="Jane Doe, born 1950")},
        {"metrics": {"dice/liver": Mean(1.0, 1.0)}},
    ],
)
def test_facts_hold_a_name_counts_and_a_version(changes: dict[str, object]) -> None:
    facts = wire.Facts(patients=dict.fromkeys(SPLITS, 5), presence={}, version="0.1.0.dev3+g12ab")
    roll_call = replace(EVALUATION, kind=wire.Kind.FACTS, site=None, patients=None, metrics=frozenset())
    good = {"delta": {}, "metrics": {}, "facts": facts}
    assert gate.admit(_packed(**good), roll_call).facts == facts
    with pytest.raises(RejectedReply):
        gate.admit(_packed(**{**good, **changes}), roll_call)


def test_a_roll_call_measures_nothing() -> None:
    assert not gate.allowed_metrics(wire.Kind.FACTS, ("liver",), True)
