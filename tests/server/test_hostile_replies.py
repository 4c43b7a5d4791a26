"""A round with a hostile site in it ends in the numbers of the good sites alone, bit for bit, and in little more memory.

``make test-hostile`` draws ten thousand replies at random; here it is three hundred.
"""

from __future__ import annotations

from dataclasses import replace

import httpx
import pytest
from arena import (
    ALONE,
    GOOD,
    HONEST,
    PATIENTS,
    REPLY,
    SMALL,
    assert_equal,
    by_objects,
    by_records,
    mean_with,
    peak,
    play_parcel,
    play_record,
)
from flwr.app import RecordDict
from hostile import OBJECTS, RECORDS, objects, records
from hypothesis import HealthCheck, given, settings
from scripted import Network, Sites, play_round
from superlink import Parcel, SuperLink

from fedmed_common.errors import TransportAway, TransportLost

EXAMPLES = 300


@pytest.mark.parametrize("name", RECORDS)
def test_a_reply_that_is_known_to_be_hostile_does_not_count(name: str) -> None:
    found, result = by_records(RECORDS[name](REPLY))
    assert result.outcome == "rejected"
    assert "Jane" not in result.code
    assert_equal(found, ALONE)


@pytest.mark.parametrize("name", OBJECTS)
def test_objects_that_are_known_to_be_hostile_do_not_count(name: str) -> None:
    found, result = by_objects(OBJECTS[name])
    assert result.outcome in {"rejected", "failed"}
    assert_equal(found, ALONE)


@given(record=records(REPLY))
@settings(max_examples=EXAMPLES * 2 // 3, deadline=None, suppress_health_check=list(HealthCheck))
def test_a_drawn_reply_does_no_harm(record: RecordDict) -> None:
    play_record(record)


@given(parcel=objects(HONEST))
@settings(max_examples=EXAMPLES // 3, deadline=None, suppress_health_check=list(HealthCheck))
def test_drawn_objects_do_no_harm(parcel: Parcel) -> None:
    play_parcel(parcel)


@pytest.mark.parametrize(
    "name",
    [
        None,
        "chunk named a thousand times",
        "chunk twice as large",
        "two thousand empty chunks",
        "array under fifty thousand names",
        "tree that hides the arrays",
    ],
)
def test_no_reply_takes_more_memory_than_two_models(name: str | None) -> None:
    assert peak(OBJECTS[name] if name else None) < 2


def test_a_reply_that_is_read_whole_is_freed_at_the_server() -> None:
    sites = Sites(GOOD)
    server = SuperLink(sites)
    done = play_round(server.grid(), sites, SMALL)  # type: ignore[arg-type]
    assert_equal(done.state.parameters, ALONE)
    assert len(server.confirmed) == 2


def test_a_site_cannot_answer_in_the_header_of_another_message() -> None:
    """The header that Flower has checked counts, not the one in the site's own object."""

    found, result = by_objects(lambda _parcel: HONEST)
    assert result.outcome == "ok"
    assert_equal(found, mean_with(REPLY.delta))


def test_requests_that_fail_for_a_moment_are_made_again() -> None:
    troubles = iter([httpx.ConnectError("down"), None, 503, 500, None, httpx.ReadTimeout("slow")])
    sites = Sites(GOOD)
    server = SuperLink(sites, trouble=lambda _path: next(troubles, None))
    done = play_round(server.grid(), sites, SMALL)  # type: ignore[arg-type]
    assert_equal(done.state.parameters, ALONE)


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
    assert_equal(done.state.parameters, mean_with(REPLY.delta))


def test_what_a_later_site_says_without_arrays_is_heard_while_the_first_is_awaited() -> None:
    tries = iter(range(10))
    sites = Sites(GOOD, trains=lambda site, _round: None if site == "z" and next(tries) == 0 else 1.0)
    server = SuperLink(sites, held_back=lambda site: site == "a" and len(sites.asked) < 2)
    done = play_round(server.grid(), sites, SMALL, retries=1)  # type: ignore[arg-type]
    assert_equal(done.state.parameters, ALONE)
    assert [(site, attempt) for site, *_, attempt in sites.asked] == [("z", 0), ("z", 1), ("a", 0)]


def test_a_duplicated_reply_counts_once() -> None:
    sites = Sites(GOOD)
    done = play_round(Network(sites, {("a", "train", 1): "twice"}), sites, SMALL)
    assert_equal(done.state.parameters, ALONE)
