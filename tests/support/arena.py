"""A round in which one of three sites is hostile, and what may come of it."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from federated import play
from flwr.app import Message, RecordDict
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from scripted import Sites, play_round, update
from superlink import Parcel, SuperLink, take_apart

from fedmed_common import wire
from fedmed_common.metrics import Mean
from fedmed_common.params import Parameters
from fedmed_server.history import SiteResult
from fedmed_strategies.presets import RECIPES

PATIENTS = {"a": 9, "evil": 7, "z": 8}
GOOD = {"a": 9, "z": 8}
"""The hostile site's name is between those of the good ones: its reply is weighed between theirs."""


def _parameters(size: int = 4) -> Parameters:
    rng = np.random.default_rng(1)
    return {
        "conv.weight": rng.normal(0, 1, (size, 3)).astype(np.float32),
        "conv.bias": rng.normal(0, 1, 4).astype(np.float32),
    }


SMALL = _parameters()
ALONE = play_round(Sites(GOOD).grid(), Sites(GOOD), SMALL).state.parameters
REPLY = wire.Reply(
    site="evil",
    run="run-1",
    round=1,
    attempt=0,
    delta=update("evil", 1, SMALL),
    metrics={"loss": Mean(1.0, 1.0)},
    seconds={"train": 1.0},
)


def assert_equal(one: Parameters, other: Parameters) -> None:
    """Bit for bit."""
    assert list(one) == list(other)
    for name in one:
        np.testing.assert_array_equal(one[name], other[name])


def mean_with(delta: Parameters) -> Parameters:
    """What the round comes to when the third site answers with just this."""
    updates = {
        site: (count, delta if site == "evil" else update(site, 1, SMALL)) for site, count in PATIENTS.items()
    }
    return play(RECIPES["fedavg"], SMALL, updates)


def by_records(record: RecordDict) -> tuple[Parameters, SiteResult]:
    """A round whose third site answers with this record: its parameters, and what became of that site."""
    sites = Sites(PATIENTS, spoil={"evil": lambda _reply: record})
    done = play_round(sites.grid(), sites, SMALL)
    return done.state.parameters, done.record.train[1]


def by_objects(tamper: Callable[[Parcel], Parcel]) -> tuple[Parameters, SiteResult]:
    """The same where it puts other objects in the place of those of a good reply."""
    sites = Sites(PATIENTS)
    server = SuperLink(sites, tamper=lambda site, parcel: tamper(parcel) if site == "evil" else parcel)
    done = play_round(server.grid(), sites, SMALL, deadline_seconds=0.001)  # type: ignore[arg-type]
    return done.state.parameters, done.record.train[1]


def assert_harmless(found: Parameters, result: SiteResult, record: RecordDict | None) -> None:
    """The good sites alone; or, where what was drawn is a reply that a good site may give, with just that."""
    if result.outcome != "ok":
        assert_equal(found, ALONE)
        assert len(result.code) < 60
        return
    assert record is not None
    delta = wire.unpack_reply(record, SMALL).delta
    assert all(np.isfinite(array).all() and array.dtype == np.float32 for array in delta.values())
    assert_equal(found, mean_with(delta))


def play_record(record: RecordDict) -> SiteResult:
    """Play a drawn record and see that it does no harm."""
    found, result = by_records(record)
    assert_harmless(found, result, record)
    return result


def play_parcel(parcel: Parcel) -> SiteResult:
    """The same with objects. What is taken of them is what Flower's own reader makes of them."""
    found, result = by_objects(lambda _honest: parcel)
    record = None
    if result.outcome == "ok":
        message = inflate_object_from_contents(parcel.root, dict(parcel.objects), keep_object_contents=True)
        assert isinstance(message, Message)
        record = message.content
    assert_harmless(found, result, record)
    return result


HONEST = take_apart(
    Message(wire.pack_reply(REPLY), reply_to=Message(RecordDict(), dst_node_id=101, message_type="train"))
)
LARGE = {f"layer-{n}.weight": np.full((1_250_000,), n, np.float32) for n in range(24)}


def peak(tamper: Callable[[Parcel], Parcel] | None) -> float:
    """What the reading of a reply takes at its peak, in models of 120 MB."""
    spoil = {"evil": lambda reply: wire.pack_reply(replace(reply, delta=LARGE))}
    sites = Sites({"evil": 7}, spoil=spoil)
    server = SuperLink(sites, tamper=lambda _site, parcel: tamper(parcel) if tamper else parcel)
    grid = server.grid()
    size = sum(array.nbytes for array in LARGE.values())
    grid.set_limit(size, len(LARGE))
    order = wire.Order(kind=wire.Kind.TRAIN, run="run-1", round=1, attempt=0, experiment="{}")
    (identifier,) = grid.push_messages([Message(wire.pack_order(order), 100, "train", ttl=60.0)])
    grid.arrived([identifier])
    tracemalloc.start()
    try:
        grid.pull_messages([identifier])
        return tracemalloc.get_traced_memory()[1] / size
    finally:
        tracemalloc.stop()
