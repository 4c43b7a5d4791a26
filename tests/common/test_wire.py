"""Orders and replies survive the wire as they were."""

from __future__ import annotations

import numpy as np
import pytest

from fedmed_common import wire
from fedmed_common.errors import WireError
from fedmed_common.metrics import Mean

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
    packed = wire.pack_parameters(PARAMETERS)
    assert wire.pack_order(order, packed).array_records == wire.pack_order(order).array_records


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
    record.config_records["order"]["version"] = 2
    with pytest.raises(WireError, match="wire version"):
        wire.unpack_order(record, wire.Kind.FACTS)


def test_a_repr_shows_no_parameters() -> None:
    assert "array" not in repr(
        wire.Order(kind=wire.Kind.TRAIN, run="r", round=0, attempt=0, experiment="", parameters=PARAMETERS)
    )
