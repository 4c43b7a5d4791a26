"""Hostile replies: each is refused alone, with a reason of ours, and good ones pass."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, RecordDict
from hostile import RECORDS
from hypothesis import given
from hypothesis import strategies as st

from fedmed_common import wire
from fedmed_common.codecs import codec_of
from fedmed_common.config import Compression, Task
from fedmed_common.errors import RejectedReply
from fedmed_common.metrics import Mean
from fedmed_common.wire_arrays import layout
from fedmed_server import gate

TASK = Task(classes=("liver",))
SPLITS = ("train", "validation", "test")
TEMPLATE = {"conv.weight": np.zeros((4, 3), np.float32), "conv.bias": np.zeros(4, np.float32)}
EXPECTED = gate.Expected(
    site="alpha",
    run="run-1",
    round=3,
    attempt=1,
    kind=wire.Kind.TRAIN,
    classes=("liver",),
    metrics=gate.allowed_metrics(wire.Kind.TRAIN, TASK),
    patients=20,
    steps=4,
    template=TEMPLATE,
    norm_limit=100.0,
)
DELTA = {"conv.weight": np.ones((4, 3), np.float32), "conv.bias": np.ones(4, np.float32)}
DELTA_SIZE = 16


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


def test_a_good_reply_passes() -> None:
    reply = gate.admit(_packed(), EXPECTED)
    assert list(reply.delta) == list(DELTA)
    np.testing.assert_array_equal(reply.delta["conv.weight"], DELTA["conv.weight"])


@pytest.mark.parametrize(
    "settings", [{"up": "bf16"}, {"up": "int8"}, {"up": "top"}, {"up": "top", "zstd": True}]
)
def test_an_encoded_update_is_read_and_no_other(settings: dict[str, object]) -> None:
    compression = Compression.model_validate(settings)
    assert compression.up is not None
    codec = codec_of(compression.up, compression)
    expected = replace(EXPECTED, codec=codec)
    sent = codec.encode(DELTA)
    reply = gate.admit(_packed(delta=sent), expected)
    read = codec.decode(sent, TEMPLATE)
    assert list(reply.delta) == list(TEMPLATE)
    assert all(reply.delta[name].tobytes() == array.tobytes() for name, array in read.items())
    name, array = next(iter(sent.items()))
    longer = np.zeros(len(array) + 1000, array.dtype)
    for spoilt in (
        DELTA,
        {**sent, name: longer},
        {**sent, name: array.astype(np.float64)},
        {**sent, "x": array},
    ):
        with pytest.raises(RejectedReply):
            gate.admit(_packed(delta=spoilt), expected)
    with pytest.raises(RejectedReply, match="parameter"):
        gate.admit(_packed(delta=sent), EXPECTED)


def test_an_encoded_update_is_held_to_the_same_limits() -> None:
    compression = Compression(up="bf16")
    codec = codec_of("bf16", compression)
    expected = replace(EXPECTED, codec=codec)
    for value, reason in ((1e18, "update too large"), (np.inf, "non-finite parameters")):
        spoilt = {"/numbers": np.array(DELTA_SIZE * [value], np.float32).view(np.uint32)}
        spoilt["/numbers"] = (spoilt["/numbers"] >> 16).astype(np.uint16)
        with pytest.raises(RejectedReply, match=reason):
            gate.admit(_packed(delta=spoilt), expected)


def test_a_refusal_passes_with_its_code_and_rule() -> None:
    reply = gate.admit(
        _packed(delta={}, metrics={}, code="policy", rule="maximum_steps", incident="0123"), EXPECTED
    )
    assert (reply.code, reply.rule, reply.incident) == ("policy", "maximum_steps", "0123")


@pytest.mark.parametrize("name", RECORDS)
def test_a_hostile_reply_is_refused(name: str) -> None:
    with pytest.raises(RejectedReply) as refused:
        gate.admit(RECORDS[name](_reply()), EXPECTED)
    assert len(str(refused.value)) < 60
    assert "Jane" not in str(refused.value)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"site": "beta"}, "another site's name"),
        ({"run": "run-2"}, "another run's reply"),
        ({"round": 2}, "reply of an old round"),
        ({"round": 4}, "reply of a round to come"),
        ({"attempt": 0}, "stale attempt"),
        ({"attempt": 2}, "attempt that was not made"),
    ],
)
def test_each_way_to_answer_another_order_has_its_reason(changes: dict[str, object], reason: str) -> None:
    with pytest.raises(RejectedReply, match=f"^{reason}$"):
        gate.admit(_packed(**changes), EXPECTED)


EVALUATION = gate.Expected(
    site="alpha",
    run="run-1",
    round=3,
    attempt=1,
    kind=wire.Kind.EVALUATE,
    classes=("liver",),
    metrics=gate.allowed_metrics(wire.Kind.EVALUATE, TASK),
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
    record = _packed()
    row = Array(dtype="float32", shape=(16,), stype="numpy.ndarray", data=data)
    record["parameters"] = ArrayRecord({layout(DELTA): row})
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
        {
            "facts": wire.Facts(
                patients=dict.fromkeys(SPLITS, 5), presence={}, version="1", held_out="Jane Doe"
            )
        },
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
    assert not gate.allowed_metrics(wire.Kind.FACTS, TASK)


MASKED = replace(EXPECTED, template=None, masked=5)
VECTOR = np.arange(5, dtype=np.uint32)


def test_a_masked_vector_passes_in_the_place_of_an_update() -> None:
    reply = gate.admit(_packed(delta={}, masked=VECTOR, secure="{}"), MASKED)
    assert reply.masked is not None
    np.testing.assert_array_equal(reply.masked, VECTOR)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"masked": VECTOR[:4]}, "parameter (size|shape)"),
        ({"masked": np.zeros(6, np.uint32)}, "parameter (size|shape)"),
        ({"masked": np.zeros((5, 1), np.uint32)}, "parameter shape"),
        ({"masked": np.zeros(5, np.float32)}, "parameter type"),
        ({"masked": np.zeros(5, np.int32)}, "parameter type"),
        ({"masked": np.zeros(5, np.uint64)}, "parameter (size|type)"),
        ({"secure": "{}"}, "no masked vector"),
        ({"masked": VECTOR}, "secure aggregation"),
        ({"masked": VECTOR, "delta": DELTA}, "undeclared parameters"),
        ({"masked": VECTOR, "sums": DELTA}, "undeclared sums"),
        ({"masked": VECTOR, "code": "internal"}, "a refusal that carries results"),
        ({"code": "policy", "secure": "{}"}, "a refusal that carries results"),
    ],
)
def test_what_is_no_masked_vector_of_that_length_is_refused(changes: dict[str, object], reason: str) -> None:
    with pytest.raises(RejectedReply, match=f"^{reason}$"):
        gate.admit(_packed(**{"delta": {}, **changes}), MASKED)


def test_a_masked_vector_that_was_not_asked_for_is_refused() -> None:
    with pytest.raises(RejectedReply, match="undeclared masked vector"):
        gate.admit(_packed(masked=VECTOR), EXPECTED)


def test_messages_of_a_secure_sum_come_when_they_are_asked_for_alone() -> None:
    expected = replace(EXPECTED, kind=wire.Kind.SECURE, template=None, metrics=frozenset())
    assert gate.admit(_packed(delta={}, metrics={}, secure="{}"), expected).secure == "{}"
    for changes in ({}, {"secure": "{}", "masked": VECTOR}, {"secure": "x" * 5_000_000}):
        with pytest.raises(RejectedReply):
            gate.admit(_packed(**{"delta": {}, "metrics": {}, **changes}), expected)
    with pytest.raises(RejectedReply, match="secure aggregation"):
        gate.admit(_packed(secure="{}"), EXPECTED)
