"""Numbers beside a message that are not those it names, or not the site's to name, do not count; the good sites' do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from arena import GOOD, PATIENTS, REPLY, assert_equal
from flwr.app import Array, ArrayRecord, RecordDict
from scripted import Sites, play_round, update
from superlink import SuperLink

from fedmed_common import wire
from fedmed_common.wire_arrays import layout, packed
from fedmed_common.wire_files import FILED, LEAST_BYTES, digest_of
from fedmed_server import gate

LARGE = {
    "conv.weight": np.random.default_rng(2).normal(0, 1, (9000, 3)).astype(np.float32),
    "conv.bias": np.zeros(4, np.float32),
}
SIZE = sum(array.size for array in LARGE.values())
ALONE = play_round(Sites(GOOD).grid(), Sites(GOOD), LARGE).state.parameters
GOOD_REPLY = replace(REPLY, delta=update("evil", 1, LARGE))
Beside = Callable[[Path], None]


def _refers(digest: str, **changes: object) -> RecordDict:
    """The good reply, whose row is a reference of the site's making."""
    fields = {"dtype": "float32", "shape": (SIZE,), "stype": FILED, "data": digest.encode(), **changes}
    record = wire.pack_reply(GOOD_REPLY)
    record["parameters"] = ArrayRecord({layout(LARGE): Array(**fields)})  # type: ignore[arg-type]
    return record


def _round(record: RecordDict, beside: Beside = lambda _folder: None) -> tuple[str, str]:
    """What becomes of the hostile site; of the others, the round must be."""
    sites = Sites(PATIENTS, spoil={"evil": lambda _reply: record})
    server = SuperLink(sites, beside=lambda site, folder: beside(folder) if site == "evil" else None)
    done = play_round(server.grid(), sites, LARGE, deadline_seconds=0.001)  # type: ignore[arg-type]
    result = done.record.train[1]
    if result.outcome != "ok":
        assert_equal(done.state.parameters, ALONE)
    return result.outcome, result.code


def _own(folder: Path) -> Path:
    """The numbers that came from the site."""
    (file,) = (file for file in folder.iterdir() if "-" in file.name)
    return file


def _replaced(change: Callable[[bytes], bytes]) -> Beside:
    def beside(folder: Path) -> None:
        file = _own(folder)
        file.write_bytes(change(file.read_bytes()))

    return beside


def test_numbers_that_are_what_they_are_named_count() -> None:
    assert layout(LARGE) in wire.pack_reply(GOOD_REPLY)["parameters"]
    assert SIZE * 4 > LEAST_BYTES
    assert _round(wire.pack_reply(GOOD_REPLY)) == ("ok", "")


@pytest.mark.parametrize(
    "digest",
    [
        "0" * 64,
        digest_of(update("a", 1, LARGE).values()),  # what another site sent
        digest_of(LARGE.values()),  # what went down
        "../" * 21 + "x",
        "/etc/passwd".ljust(64, "/"),
        "",
        "A" * 64,
    ],
)
def test_what_was_not_sent_by_the_site_for_the_order_does_not_count(digest: str) -> None:
    assert _round(_refers(digest)) == ("rejected", gate.UNREADABLE)


@pytest.mark.parametrize("change", [lambda content: content[:-1], lambda _content: b""])
def test_fewer_bytes_than_were_named_do_not_count(change: Callable[[bytes], bytes]) -> None:
    assert _round(wire.pack_reply(GOOD_REPLY), _replaced(change)) == ("rejected", gate.UNREADABLE)


def test_a_file_that_leads_elsewhere_is_not_followed() -> None:
    def lead(folder: Path) -> None:
        file = _own(folder)
        file.rename(folder / "elsewhere")
        file.symlink_to("elsewhere")

    assert _round(wire.pack_reply(GOOD_REPLY), lead) == ("rejected", gate.UNREADABLE)


@pytest.mark.parametrize(
    "changes", [{"shape": (SIZE + 1,)}, {"shape": (10**15,)}, {"dtype": "float64"}, {"shape": (2**40, 2**40)}]
)
def test_more_than_was_asked_for_is_not_even_looked_for(changes: dict[str, object]) -> None:
    outcome, code = _round(_refers(digest_of(GOOD_REPLY.delta.values()), **changes))
    assert (outcome, code in {gate.OVERSIZED, gate.UNREADABLE}) == ("rejected", True)


def test_numbers_of_another_shape_or_name_do_not_count() -> None:
    part = {"conv.weight": GOOD_REPLY.delta["conv.weight"]}
    record = wire.pack_reply(GOOD_REPLY)
    record["parameters"] = packed(part)
    assert _round(record)[0] == "rejected"
    half = np.random.default_rng(0).random(SIZE, np.float32)

    def also(folder: Path) -> None:
        (folder / f"{digest_of([half])}-{half.nbytes}").write_bytes(half.tobytes())

    for changes in ({"dtype": "uint32"}, {"shape": (2, SIZE // 2)}):
        assert _round(_refers(digest_of([half]), **changes), also)[0] == "rejected"


def test_numbers_under_two_names_are_more_than_was_asked_for() -> None:
    record = wire.pack_reply(GOOD_REPLY)
    (row,) = record["parameters"].values()
    other = Array(np.random.default_rng(0).random(SIZE, np.float32))
    record["sums"] = ArrayRecord({layout(LARGE): other})
    record["parameters"] = ArrayRecord({layout(LARGE): row})
    assert _round(record) == ("rejected", gate.OVERSIZED)


def test_numbers_inside_a_message_are_small() -> None:
    """What is to go beside is not taken inside: there it would be in memory before it is weighed."""
    sites = Sites(PATIENTS)
    server = SuperLink(sites, is_beside=lambda site: site != "evil")
    done = play_round(server.grid(), sites, LARGE, deadline_seconds=0.001)  # type: ignore[arg-type]
    assert (done.record.train[1].outcome, done.record.train[1].code) == ("rejected", gate.OVERSIZED)
    assert_equal(done.state.parameters, ALONE)
    assert [entry.name for entry in (server.root / "1").iterdir()] == ["models"]
