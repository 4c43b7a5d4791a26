"""Many who send much, or slowly, hold up nobody else for long, and what came of a piece is not lost."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from starlette.requests import ClientDisconnect

from fedmed_common.errors import RequestRefused
from fedmed_common.wire_files import Part
from fedmed_server.deployment import bodies, bulk
from fedmed_server.deployment import shelf as shelves
from fedmed_server.deployment.bulk import AT_ONCE, AT_ONCE_OF_A_SITE, Bulk, Busy
from fedmed_server.deployment.shelf import Shelf, order_folder, reply_file

ORDER, SIZE = "0" * 64, 1000
SITES = 200


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
    monkeypatch.setattr(bodies, "_TURN_SECONDS", 0.05)
    monkeypatch.setattr(bulk, "_SECONDS", 0.5)


def _order(node: int) -> str:
    return sha256(str(node).encode()).hexdigest()


@pytest.fixture
def shelf(tmp_path: Path) -> Any:
    """With an order out to each node."""
    own = Shelf(tmp_path, 1)
    for node in range(SITES):
        own.ask(_order(node), Message(RecordDict(), node, "train", ttl=60.0), (SIZE, 1))
    yield own
    own.close()


def _part(node: int) -> Part:
    return Part(run=1, message=_order(node), digest=sha256(b"x" * SIZE).hexdigest(), size=SIZE)


class _Site:
    """Sends some bytes of a piece, and then the rest when it is let."""

    def __init__(self, where: Bulk, node: int, first: int = SIZE) -> None:
        self.go_on, self.said = asyncio.Event(), list[Any]()
        self._where, self._node, self._left = where, node, [first, SIZE - first]

    async def put(self) -> int:
        headers = [(b"content-length", str(SIZE).encode())]
        scope = {"method": "PUT", "path": _part(self._node).path(0, SIZE), "headers": headers}
        await self._where.serve(f"site-{self._node}", self._node, scope, self._receive, self._send)
        return int(self.said[0]["status"])

    async def _receive(self) -> dict[str, Any]:
        if len(self._left) == 1:
            await self.go_on.wait()
        size = self._left.pop(0)
        return {"type": "http.request", "body": b"x" * size, "more_body": bool(size < SIZE and self._left)}

    async def _send(self, message: Any) -> None:
        self.said.append(message)


async def _refused(attempt: Any) -> type[Exception] | None:
    try:
        await attempt
    except (Busy, RequestRefused, ClientDisconnect) as error:
        return type(error)
    return None


def test_thousands_wait_for_their_turn_or_come_again(tmp_path: Path, shelf: Shelf) -> None:
    """Those who stall have their places until their time is up; a site's own share is smaller."""

    async def play() -> tuple[list[Any], Any, Any]:
        where = Bulk(tmp_path)
        stalled = [_Site(where, node, first=10) for node in range(AT_ONCE)]
        held = [asyncio.create_task(_refused(one.put())) for one in stalled]
        await asyncio.sleep(0)
        others = await asyncio.gather(*(_refused(_Site(where, node).put()) for node in range(AT_ONCE, SITES)))
        ends = await asyncio.gather(*held)
        after = await _refused(_Site(where, AT_ONCE).put())
        return others, set(ends), after

    others, ends, after = asyncio.run(play())
    assert others == [Busy] * (SITES - AT_ONCE)
    assert (ends, after) == ({Busy}, None)
    kept = reply_file(tmp_path, _part(0)).with_name(f"{reply_file(tmp_path, _part(0)).name}.part")
    assert kept.stat().st_size in {
        0,
        10,
    }  # what came before the time was up may have been on its way to the file


def test_a_site_sends_a_piece_once_at_a_time(
    tmp_path: Path, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk, "_SECONDS", 60.0)

    async def play() -> tuple[Any, Any, int]:
        where = Bulk(tmp_path)
        one = _Site(where, 0, first=10)
        first = asyncio.create_task(one.put())
        await asyncio.sleep(0.01)
        again = await _refused(_Site(where, 0).put())
        third = await asyncio.gather(*(_refused(_Site(where, 0).put()) for _ in range(AT_ONCE_OF_A_SITE)))
        one.go_on.set()
        return again, set(third), await first

    assert asyncio.run(play()) == (Busy, {Busy}, 200)
    assert reply_file(tmp_path, _part(0)).read_bytes() == b"x" * SIZE


def test_a_write_that_outlasts_its_piece_reaches_no_other_file(
    tmp_path: Path, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The number of a file that is closed is soon another file's."""
    write, slow = os.write, threading.Event()

    def slow_write(descriptor: int, content: bytes) -> int:
        if not slow.is_set():
            slow.set()
            time.sleep(1.0)
        return write(descriptor, content[: SIZE // 2])

    monkeypatch.setattr(bulk.os, "write", slow_write)

    async def play() -> tuple[Any, Any]:
        where = Bulk(tmp_path)
        late = asyncio.create_task(_refused(_Site(where, 0).put()))
        while not slow.is_set():
            await asyncio.sleep(0.01)
        others = await asyncio.gather(*(_refused(_Site(where, node).put()) for node in range(1, 4)))
        return await late, set(others)

    assert asyncio.run(play()) == (Busy, {None})
    for node in range(1, 4):
        assert reply_file(tmp_path, _part(node)).read_bytes() == b"x" * SIZE


def test_what_came_whole_is_compared_before_it_is_told(tmp_path: Path, shelf: Shelf) -> None:
    """A server that was killed between the last byte and the comparison."""
    whole = reply_file(tmp_path, _part(0))
    for content, end in ((b"x" * SIZE, None), (b"y" * SIZE, RequestRefused)):
        whole.unlink(missing_ok=True)
        whole.with_name(f"{whole.name}.part").write_bytes(content)
        scope = {"method": "HEAD", "path": _part(0).path(0, SIZE), "headers": []}
        site = _Site(Bulk(tmp_path), 0)
        assert asyncio.run(_refused(site._where.serve("site-0", 0, scope, site._receive, site._send))) is end
        assert whole.exists() == (end is None)
        assert not whole.with_name(f"{whole.name}.part").exists()


def test_a_site_may_say_again_that_it_has_sent_all(tmp_path: Path, shelf: Shelf) -> None:
    where = Bulk(tmp_path)
    assert asyncio.run(_Site(where, 0).put()) == 200
    scope = {"method": "PUT", "path": _part(0).path(SIZE, SIZE), "headers": [(b"content-length", b"0")]}
    again = _Site(where, 0)
    assert asyncio.run(_refused(where.serve("site-0", 0, scope, again._receive, again._send))) is None
    assert again.said[0]["status"] == 200
    assert [file.name for file in order_folder(tmp_path, 1, _order(0)).iterdir() if "part" in file.name] == []


def test_a_run_that_begins_is_not_swept_away_by_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lock that is being taken looks, to who sweeps, like one that nobody holds."""
    held, began, swept = shelves._held, threading.Event(), list[float]()

    def taken(root: Path, name: str) -> int | None:
        if name == "7" and not began.is_set():
            began.set()
            time.sleep(0.5)
        return held(root, name)

    monkeypatch.setattr(shelves, "_held", taken)
    sweeper = threading.Thread(target=lambda: (began.wait(), shelves.sweep(tmp_path), swept.append(1.0)))
    sweeper.start()
    own = Shelf(tmp_path, 7)
    sweeper.join()
    shelves.sweep(tmp_path)
    assert swept
    assert (tmp_path / "7" / "models").is_dir()
    own.close()


@pytest.mark.parametrize("gone", [lambda shelf: shelf.forget(_order(0)), lambda shelf: shelf.close()])
def test_what_comes_for_an_order_that_ended_meanwhile_is_dropped(
    tmp_path: Path, shelf: Shelf, gone: Callable[[Shelf], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk, "_SECONDS", 60.0)

    async def play() -> Any:
        one = _Site(Bulk(tmp_path), 0, first=10)
        sending = asyncio.create_task(_refused(one.put()))
        await asyncio.sleep(0.01)
        gone(shelf)
        one.go_on.set()
        return await sending

    assert asyncio.run(play()) is RequestRefused
    assert not order_folder(tmp_path, 1, _order(0)).exists()
