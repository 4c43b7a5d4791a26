"""A round with a hostile site in it ends in the numbers of the good sites alone, bit for bit, and in little more memory.

``make test-hostile`` draws ten thousand replies at random; here it is three hundred.
"""

from __future__ import annotations

import os
import tracemalloc
from collections.abc import Callable
from dataclasses import replace

import httpx
import numpy as np
import pytest
from flwr.app import Message, RecordDict
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from hostile import OBJECTS, RECORDS, objects, records
from hypothesis import HealthCheck, given, settings
from scripted import Network, Sites, play_round, update
from superlink import Parcel, SuperLink, take_apart

from fedmed_common import wire
from fedmed_common.errors import TransportAway, TransportLost
from fedmed_common.metrics import Mean
from fedmed_common.params import Parameters, WeightedMean
from fedmed_server.history import SiteResult
from fedmed_strategies.presets import RECIPES

EXAMPLES = int(os.environ.get("FEDMED_HOSTILE_EXAMPLES", "300"))
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


def _assert_equal(one: Parameters, other: Parameters) -> None:
    assert list(one) == list(other)
    for name in one:
        np.testing.assert_array_equal(one[name], other[name])


def _mean_with(delta: Parameters) -> Parameters:
    mean, recipe = WeightedMean(SMALL), RECIPES["fedavg"]
    for site, count in PATIENTS.items():
        mean.add(delta if site == "evil" else update(site, 1, SMALL), recipe.weigh(count))
    return recipe.server_step(SMALL, mean.mean())


def _by_records(record: RecordDict) -> tuple[Parameters, SiteResult]:
    sites = Sites(PATIENTS, spoil={"evil": lambda _reply: record})
    done = play_round(sites.grid(), sites, SMALL)
    return done.state.parameters, done.record.train[1]


def _by_objects(tamper: Callable[[Parcel], Parcel]) -> tuple[Parameters, SiteResult]:
    sites = Sites(PATIENTS)
    server = SuperLink(sites, tamper=lambda site, parcel: tamper(parcel) if site == "evil" else parcel)
    done = play_round(server.grid(), sites, SMALL, deadline_seconds=0.001)  # type: ignore[arg-type]
    return done.state.parameters, done.record.train[1]


def _assert_harmless(found: Parameters, result: SiteResult, record: RecordDict | None) -> None:
    """The good sites alone; or, where what was drawn is a reply that a good site may give, with just that."""
    if result.outcome != "ok":
        _assert_equal(found, ALONE)
        assert len(result.code) < 60
        return
    assert record is not None
    delta = wire.unpack_reply(record, SMALL).delta
    assert all(np.isfinite(array).all() and array.dtype == np.float32 for array in delta.values())
    _assert_equal(found, _mean_with(delta))


@pytest.mark.parametrize("name", RECORDS)
def test_a_reply_that_is_known_to_be_hostile_does_not_count(name: str) -> None:
    found, result = _by_records(RECORDS[name](REPLY))
    assert result.outcome == "rejected"
    assert "Jane" not in result.code
    _assert_equal(found, ALONE)


@pytest.mark.parametrize("name", OBJECTS)
def test_objects_that_are_known_to_be_hostile_do_not_count(name: str) -> None:
    found, result = _by_objects(OBJECTS[name])
    assert result.outcome in {"rejected", "failed"}
    _assert_equal(found, ALONE)


@given(record=records(REPLY))
@settings(max_examples=EXAMPLES * 2 // 3, deadline=None, suppress_health_check=list(HealthCheck))
def test_a_drawn_reply_does_no_harm(record: RecordDict) -> None:
    found, result = _by_records(record)
    _assert_harmless(found, result, record)


HONEST = take_apart(
    Message(wire.pack_reply(REPLY), reply_to=Message(RecordDict(), dst_node_id=101, message_type="train"))
)


@given(parcel=objects(HONEST))
@settings(max_examples=EXAMPLES // 3, deadline=None, suppress_health_check=list(HealthCheck))
def test_drawn_objects_do_no_harm(parcel: Parcel) -> None:
    found, result = _by_objects(lambda _honest: parcel)
    record = None
    if result.outcome == "ok":
        message = inflate_object_from_contents(parcel.root, dict(parcel.objects), keep_object_contents=True)
        assert isinstance(message, Message)
        record = message.content
    _assert_harmless(found, result, record)


LARGE = {f"layer-{n}.weight": np.full((1_250_000,), n, np.float32) for n in range(16)}


def _peak(tamper: Callable[[Parcel], Parcel] | None) -> float:
    """What the reading of a reply takes at its peak, in models of 80 MB."""
    sites = Sites({"evil": 7})
    server = SuperLink(sites, tamper=lambda _site, parcel: tamper(parcel) if tamper else parcel)
    grid = server.grid()
    size = sum(array.nbytes for array in LARGE.values())
    grid.set_limit(size, len(LARGE))
    order = wire.Order(
        kind=wire.Kind.TRAIN, run="run-1", round=1, attempt=0, experiment="{}", parameters=LARGE
    )
    (identifier,) = grid.push_messages([Message(wire.pack_order(order), 100, "train", ttl=60.0)])
    grid.arrived([identifier])
    tracemalloc.start()
    try:
        grid.pull_messages([identifier])
        return tracemalloc.get_traced_memory()[1] / size
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "name",
    [
        None,
        "chunk named a thousand times",
        "chunk three times as large",
        "two thousand empty chunks",
        "array under fifty thousand names",
        "tree that hides the arrays",
    ],
)
def test_no_reply_takes_more_memory_than_two_models(name: str | None) -> None:
    assert _peak(OBJECTS[name] if name else None) < 2


def test_a_reply_that_is_read_whole_is_freed_at_the_server() -> None:
    sites = Sites(GOOD)
    server = SuperLink(sites)
    done = play_round(server.grid(), sites, SMALL)  # type: ignore[arg-type]
    _assert_equal(done.state.parameters, ALONE)
    assert len(server.confirmed) == 2


def test_a_site_cannot_answer_in_the_header_of_another_message() -> None:
    """The header that Flower has checked counts, not the one in the site's own object."""

    found, result = _by_objects(lambda _parcel: HONEST)
    assert result.outcome == "ok"
    _assert_equal(found, _mean_with(REPLY.delta))


def test_requests_that_fail_for_a_moment_are_made_again() -> None:
    troubles = iter([httpx.ConnectError("down"), None, 503, 500, None, httpx.ReadTimeout("slow")])
    sites = Sites(GOOD)
    server = SuperLink(sites, trouble=lambda _path: next(troubles, None))
    done = play_round(server.grid(), sites, SMALL)  # type: ignore[arg-type]
    _assert_equal(done.state.parameters, ALONE)


@pytest.mark.parametrize("status", [401, 403])
def test_a_flower_run_that_is_over_is_told_apart(status: int) -> None:
    grid = SuperLink(Sites(GOOD), trouble=lambda _path: status).grid()
    with pytest.raises(TransportLost):
        grid.get_nodes()


def test_a_server_that_does_not_answer_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedmed_server.deployment.grid._PATIENCE_SECONDS", 0.05)
    grid = SuperLink(Sites(GOOD), trouble=lambda _path: 500).grid()
    with pytest.raises(TransportAway, match="HTTP 500"):
        grid.get_nodes()


def test_a_reply_that_is_not_uploaded_yet_is_waited_for() -> None:
    sites = Sites(PATIENTS)
    kept: dict[str, bytes] = {}

    def hold_back(site: str, parcel: Parcel) -> Parcel:
        if site != "evil":
            return parcel
        kept.update(parcel.objects)
        return replace(parcel, objects=dict.fromkeys(parcel.objects, b""))

    server = SuperLink(sites, tamper=hold_back)
    looks = iter(range(1000))

    def upload(path: str) -> None:
        if path == "get-nodes" and kept and next(looks) == 3:
            server.store.update(kept)

    server.trouble = upload  # type: ignore[assignment]
    done = play_round(server.grid(), sites, SMALL)  # type: ignore[arg-type]
    _assert_equal(done.state.parameters, _mean_with(REPLY.delta))


def test_what_a_later_site_says_without_arrays_is_heard_while_the_first_is_awaited() -> None:
    tries = iter(range(10))
    sites = Sites(GOOD, trains=lambda site, _round: None if site == "z" and next(tries) == 0 else 1.0)
    server = SuperLink(sites, held_back=lambda site: site == "a" and len(sites.asked) < 2)
    done = play_round(server.grid(), sites, SMALL, retries=1)  # type: ignore[arg-type]
    _assert_equal(done.state.parameters, ALONE)
    assert [(site, attempt) for site, *_, attempt in sites.asked] == [("z", 0), ("z", 1), ("a", 0)]


def test_a_duplicated_reply_counts_once() -> None:
    sites = Sites(GOOD)
    done = play_round(Network(sites, {("a", "train", 1): "twice"}), sites, SMALL)
    _assert_equal(done.state.parameters, ALONE)
