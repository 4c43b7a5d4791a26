"""A site asks a slow server, and one of many sites, less often; an answer that says 'busy' is no lost line."""

from __future__ import annotations

import random
import ssl
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from flwr.proto.fleet_pb2 import ActivateNodeResponse, PullMessagesResponse
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatResponse
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE

from fedmed_client.link.line import Line, Stopped
from fedmed_client.link.pace import (
    AGAIN_SHARE,
    BEAT_SHARES,
    LEASE_SECONDS,
    LONGEST_INTERVAL_SECONDS,
    LONGEST_SLOW_SECONDS,
    PROMPT_SECONDS,
    PUT_OFF_SECONDS,
    RETURN,
    TIMES,
    Pace,
    waits,
)
from fedmed_client.link.status import Status
from fedmed_client.site.home import SiteFolder
from fedmed_common import identity
from fedmed_common.signed_requests import INTERVAL_HEADER

JSON = "application/json"


class Clock:
    """The time as the test has it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._now = 0.0
        monkeypatch.setattr(time, "monotonic", lambda: self._now)

    def passes(self, seconds: float) -> float:
        self._now += seconds
        return seconds


@pytest.mark.parametrize(
    ("took", "least", "most"),
    [
        (0.0, 1.0, 1.0),
        (PROMPT_SECONDS, 1.0, 1.0),
        (PROMPT_SECONDS + 0.5, TIMES * 0.25, TIMES * 0.5),
        (20.0, LONGEST_SLOW_SECONDS / 2, LONGEST_SLOW_SECONDS),
    ],
)
def test_a_pause_is_as_usual_or_as_long_as_the_answer_calls_for(
    took: float, least: float, most: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, pace = Clock(monkeypatch), Pace(random.Random(1))  # noqa: S311
    assert pace.pause(1.0) == 1.0
    assert pace.timed(lambda: clock.passes(took)) == took
    assert least <= pace.pause(1.0) <= most


def test_a_failure_does_not_count_and_a_slow_answer_is_forgotten_by_and_by(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock, pace = Clock(monkeypatch), Pace(random.Random(1))  # noqa: S311

    def fails() -> None:
        clock.passes(20.0)
        raise TimeoutError

    with pytest.raises(TimeoutError):
        pace.timed(fails)
    assert pace.pause(0.5) == 0.5
    pace.timed(lambda: clock.passes(20.0))
    most = []
    for _ in range(4):
        most.append(max(pace.pause(0.5) for _ in range(1000)))
        pace.timed(lambda: clock.passes(0.0))
    assert most == pytest.approx([10.0, 4.0, 1.0, 0.5], rel=0.01)


def test_a_server_that_puts_a_site_off_is_asked_rarely_then_as_usual_by_and_by(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock, pace = Clock(monkeypatch), Pace(random.Random(1))  # noqa: S311
    pace.put_off()
    assert PUT_OFF_SECONDS / 2 <= pace.pause(1.0) <= PUT_OFF_SECONDS
    pauses = []
    for _ in range(40):
        pace.timed(lambda: clock.passes(0.0))
        pauses.append(max(pace.pause(1.0) for _ in range(1000)))
    expected = [max(PUT_OFF_SECONDS * RETURN**number, 1.0) for number in range(1, 41)]
    assert pauses == pytest.approx(expected, rel=0.02)
    assert pauses[-1] == 1.0


@pytest.mark.parametrize(
    ("told", "least", "most", "lease"),
    [
        (0.4, 1.0, 1.0, LEASE_SECONDS),
        (5.0, 2.5, 5.0, LEASE_SECONDS),
        (25.0, 12.5, 25.0, 75.0),
        (1e9, LONGEST_INTERVAL_SECONDS / 2, LONGEST_INTERVAL_SECONDS, 180.0),
    ],
)
def test_a_site_asks_and_beats_as_the_server_says(
    told: float, least: float, most: float, lease: float
) -> None:
    pace = Pace(random.Random(1))  # noqa: S311
    pace.told(told)
    pauses = [pace.pause(1.0) for _ in range(1000)]
    assert (min(pauses), max(pauses)) == pytest.approx((least, most), rel=0.01)
    assert pace.lease_seconds() == lease
    beats = [pace.until_beat(lease) for _ in range(1000)]
    assert (min(beats), max(beats)) == pytest.approx((lease * 2 / 3, lease * 14 / 15), rel=0.01)
    pace.told(0.0)
    assert (pace.pause(1.0), pace.lease_seconds()) == (1.0, LEASE_SECONDS)


def test_waits_grow_to_their_bound_and_no_two_sites_wait_alike() -> None:
    most = [0.5, 1.0, 2.0, 4.0, 8.0, 10.0, 10.0]
    chances = (random.Random(site) for site in ("a", "b"))  # noqa: S311
    one, other = (list(islice(waits(0.5, 10.0, chance), len(most))) for chance in chances)
    for found in (one, other):
        assert all(bound / 2 <= wait <= bound for wait, bound in zip(found, most, strict=True))
    assert not set(one) & set(other)


class Scripted(ThreadingHTTPServer):
    """Answers ``pull-messages`` and beats as it is told, and every other call well; ``asked``: the calls."""

    daemon_threads = True

    def __init__(self, context: ssl.SSLContext) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.socket = context.wrap_socket(self.socket, server_side=True)
        self.asked: list[str] = []
        self.pulls: list[tuple[int, str]] = []
        self.beats: list[tuple[int, str]] = []
        self.interval = ""
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def answer(self, call: str) -> tuple[int, str, bytes]:
        self.asked.append(call)
        if call == "pull-messages" and self.pulls:
            return (*self.pulls.pop(0), b"")
        if call == "send-node-heartbeat":
            if self.beats:
                return (*self.beats.pop(0), b"")
            return 200, PROTOBUF_MEDIA_TYPE, SendNodeHeartbeatResponse(success=True).SerializeToString()
        content = ActivateNodeResponse(node_id=1) if call == "activate-node" else PullMessagesResponse()
        return 200, PROTOBUF_MEDIA_TYPE, content.SerializeToString()


class _Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Scripted

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", "0")))
        status, kind, content = self.server.answer(self.path.rpartition("/")[2])
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(content)))
        if self.server.interval:
            self.send_header(INTERVAL_HEADER, self.server.interval)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


@pytest.fixture
def scripted(offline: Any, tmp_path: Path) -> Iterator[Scripted]:
    key, file = identity.new_key(), tmp_path / "server.pem"
    certificate = offline.folder.authority().certify_server(offline.folder.recorded(), key.public_key())
    identity.save_key(file, key)
    with file.open("a") as stream:
        stream.write(identity.certificate_text(certificate))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    server = Scripted(context)
    yield server
    server.shutdown()
    server.server_close()


def _opened(home: SiteFolder, scripted: Scripted, stop: threading.Event) -> Line:
    home.connection_file.write_text(
        home.connection_file.read_text().replace(
            home.connection().address, f"127.0.0.1:{scripted.server_address[1]}"
        )
    )
    line = Line(home, Status(home, home.connection().address), stop)
    line.open()
    return line


def test_what_the_server_says_counts_until_it_says_otherwise(scripted: Scripted, offline: Any) -> None:
    stop = threading.Event()
    line = _opened(offline.join(), scripted, stop)
    for said in ("12.0", "", "12", "9" * 7, "12.0", "-5", "12.0", "nan", "12.0", "12, 12"):
        scripted.interval = said
        assert line.pull() is None
        least, most = (6.0, 12.0) if said in {"12", "12.0"} else (1.0, 1.0)
        assert (said, least <= line.pause(1.0) <= most) == (said, True)
    stop.set()
    line.close()


@pytest.mark.parametrize(
    ("answer", "between"), [((503, JSON), []), ((500, JSON), ["activate-node"]), ((503, "text/html"), ["activate-node"])]
)  # fmt: skip
def test_a_server_that_is_busy_is_asked_again_without_a_new_link(
    answer: tuple[int, str], between: list[str], scripted: Scripted, offline: Any
) -> None:
    stop = threading.Event()
    line = _opened(offline.join(), scripted, stop)
    assert line.pull() is None
    scripted.pulls = [answer]
    assert line.pull() is None
    stop.set()
    with pytest.raises(Stopped):
        line.pull()
    line.close()
    asked = [call for call in scripted.asked if call != "send-node-heartbeat"]
    assert asked == [
        "activate-node", "pull-messages", "pull-messages", *between, "pull-messages", "deactivate-node",
    ]  # fmt: skip


class _Skipping(threading.Event):
    """Does not let the beats wait; ``waits``: the seconds that they would have waited."""

    def __init__(self, beats: int) -> None:
        super().__init__()
        self.waits: list[float] = []
        self._beats, self.all = beats, threading.Event()

    def wait(self, timeout: float | None = None) -> bool:
        if threading.current_thread().name != "beat":
            return super().wait(timeout)
        self.waits.append(timeout or 0.0)
        if len(self.waits) > self._beats:
            self.all.set()
            return super().wait()
        return self.is_set()


def test_a_beat_that_fails_is_soon_followed_by_the_next(scripted: Scripted, offline: Any) -> None:
    stop = _Skipping(beats=4)
    scripted.beats = [(200, JSON)] * 2
    line = _opened(offline.join(), scripted, stop)
    assert stop.all.wait(30)
    stop.set()
    line.close()
    shares = [wait / LEASE_SECONDS for wait in stop.waits]
    is_soon = [share <= AGAIN_SHARE * BEAT_SHARES[1] for share in shares]
    assert is_soon == [False, True, True, False, False]
    assert all(share >= BEAT_SHARES[0] for share, soon in zip(shares, is_soon, strict=True) if not soon)
