"""Whoever comes when all places are taken is told so at once, and what makes more work is the first to be."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import pytest
from starlette.types import Receive, Scope, Send

from fedmed_common.signed_requests import INTERVAL_HEADER, REFUSAL_HEADER
from fedmed_server.deployment.bulk import Bulk
from fedmed_server.deployment.guard import FLEET_PATHS, Guard
from fedmed_server.deployment.places import (
    BEGINNINGS,
    MOST,
    QUESTIONS_A_SECOND,
    Busy,
    Places,
    interval_seconds,
)

BEAT, PULL = "/v1/fleet/send-node-heartbeat", "/v1/fleet/pull-messages"


def _are_taken_up(places: Places, paths: Sequence[str]) -> list[bool]:
    """Whether each gets a place while those before it keep theirs."""
    found = []
    with ExitStack() as taken:
        for path in paths:
            try:
                taken.enter_context(places.take(path))
            except Busy:
                found.append(False)
            else:
                found.append(True)
    return found


def test_what_makes_more_work_gets_half_of_the_places() -> None:
    places = Places(4)
    assert _are_taken_up(places, [PULL, PULL, PULL, BEAT, PULL, BEAT, BEAT]) == [
        True, True, False, True, False, True, False,
    ]  # fmt: skip
    assert _are_taken_up(places, [BEAT] * 5) == [True] * 4 + [False]
    assert FLEET_PATHS > BEGINNINGS


def test_a_place_is_given_back_also_where_the_request_fails() -> None:
    places = Places(1)
    for _ in range(2):
        with pytest.raises(ValueError, match="failed"), places.take(BEAT):
            raise ValueError("failed")


def test_that_sites_are_told_to_wait_is_said_once_each_time(caplog: pytest.LogCaptureFixture) -> None:
    places = Places(4)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            _are_taken_up(places, [BEAT] * 9)
    assert len(caplog.records) == 2


def test_all_sites_together_ask_no_more_often_the_more_they_are() -> None:
    assert interval_seconds(0) == 0
    assert {sites / interval_seconds(sites) for sites in (1, 30, 500)} == {QUESTIONS_A_SECOND}


class _Everyone:
    """Admits everybody."""

    connected = 30

    async def known(self, headers: Any) -> str:
        return "alpha"

    async def admit(self, name: str, request: Any) -> None:
        """Nothing is wrong."""


async def _ask(guard: Guard, path: str) -> tuple[int, dict[bytes, bytes]]:
    said: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        said.append(message)

    await guard(
        {"type": "http", "method": "POST", "path": path, "query_string": b"", "headers": []}, receive, send
    )
    return said[0]["status"], dict(said[0]["headers"])


def test_sites_are_told_to_ask_later_while_so_many_requests_are_at_work(tmp_path: Path) -> None:
    async def play() -> None:
        go_on, answered = asyncio.Event(), {"type": "http.response.start", "status": 200, "headers": []}

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            await go_on.wait()
            await send(answered)

        guard = Guard(app, cast(Any, _Everyone()), Bulk(tmp_path), body_bytes=10)
        half = [asyncio.create_task(_ask(guard, PULL)) for _ in range(MOST // 2)]
        await asyncio.sleep(0)
        status, headers = await _ask(guard, PULL)
        assert (status, headers[b"content-type"], REFUSAL_HEADER.encode() in headers) == (
            503, b"application/json", False,
        )  # fmt: skip
        beat = asyncio.create_task(_ask(guard, BEAT))
        await asyncio.sleep(0)
        go_on.set()
        assert {(await one)[0] for one in (*half, beat)} == {200}
        status, headers = await _ask(guard, PULL)
        assert (status, headers[INTERVAL_HEADER.encode()]) == (200, b"1.5")

    asyncio.run(play())
