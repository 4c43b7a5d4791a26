"""Orders and replies survive the wire as they were."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord

from fedmed_common import wire
from fedmed_common.errors import WireError
from fedmed_common.metrics import Mean
from fedmed_common.wire_arrays import packed

PARAMETERS = {"z": np.array([[1.5, -0.0]], np.float32), "a": np.zeros((), np.float32)}


def test_an_order_comes_back() -> None:
    order = wire.Order(
        kind=wire.Kind.EVALUATE,
        run="r",
        round=2,
        attempt=1,
        experiment="{}",
        split="test",
        parameters=PARAMETERS,
    )
    back = wire.unpack_order(wire.pack_order(order), wire.Kind.EVALUATE)
    assert (back.run, back.round, back.attempt, back.experiment, back.split) == ("r", 2, 1, "{}", "test")
    assert list(back.parameters) == list(PARAMETERS)
    for name, array in PARAMETERS.items():
        assert back.parameters[name].tobytes() == array.tobytes()


def test_packed_parameters_can_be_shared() -> None:
    order = wire.Order(
        kind=wire.Kind.TRAIN, run="r", round=1, attempt=0, experiment="{}", parameters=PARAMETERS
    )
    record = packed(PARAMETERS)
    assert wire.pack_order(order, record).array_records == wire.pack_order(order).array_records


def test_a_reply_comes_back() -> None:
    reply = wire.Reply(
        site="alpha",
        run="r",
        round=1,
        attempt=0,
        delta=PARAMETERS,
        metrics={"loss": Mean(1.5, 3.0)},
        seconds={"train": 0.25},
        facts=wire.Facts(patients={"train": 3}, presence={"liver": -1}, version="1"),
    )
    back = wire.unpack_reply(wire.pack_reply(reply), PARAMETERS)
    assert back.metrics == reply.metrics
    assert back.seconds == reply.seconds
    assert back.facts == reply.facts
    assert back.delta["z"].tobytes() == PARAMETERS["z"].tobytes()


def test_an_order_of_another_version_is_refused() -> None:
    record = wire.pack_order(wire.Order(kind=wire.Kind.FACTS, run="r", round=0, attempt=0, experiment="{}"))
    record.config_records["order"]["version"] = 1
    with pytest.raises(WireError, match="wire version"):
        wire.unpack_order(record, wire.Kind.FACTS)


@pytest.mark.parametrize("run", ["r\n2026-01-01 all is well", "r\x1b[2J", "r\u2028"])
def test_a_name_that_would_write_lines_of_its_own_into_a_log_is_refused(run: str) -> None:
    order = wire.Order(kind=wire.Kind.TRAIN, run=run, round=1, attempt=0, experiment="{}")
    with pytest.raises(WireError, match="run field"):
        wire.unpack_order(wire.pack_order(order), wire.Kind.TRAIN)


@pytest.mark.parametrize(
    "shape", ["(10**30,)", f"({10**30},)", "(True, 1)", "(-1, -1)", "(", "(4611686018427387904, 4)"]
)
def test_an_order_whose_array_has_no_possible_shape_is_refused(shape: str) -> None:
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}}}\n".encode()
    data = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(4)
    array = Array(dtype="float32", shape=(1,), stype="numpy.ndarray", data=data)
    order = wire.Order(kind=wire.Kind.TRAIN, run="r", round=1, attempt=0, experiment="{}")
    with pytest.raises(WireError, match="parameter"):
        wire.unpack_order(wire.pack_order(order, ArrayRecord({"a": array})), wire.Kind.TRAIN)


def test_a_repr_shows_no_parameters() -> None:
    assert "array" not in repr(
        wire.Order(kind=wire.Kind.TRAIN, run="r", round=0, attempt=0, experiment="", parameters=PARAMETERS)
    )
