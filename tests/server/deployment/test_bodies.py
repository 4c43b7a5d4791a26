"""Whoever sends much, or slowly, holds up nobody else for long, and no more of it is kept than was meant."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest
from starlette.types import Receive

from fedmed_common.errors import RequestRefused
from fedmed_server.deployment import bodies
from fedmed_server.deployment.bodies import AT_ONCE, AT_ONCE_OF_A_SITE, SMALL_BYTES, Bodies, Busy

LARGE = {"content-length": str(SMALL_BYTES + 1)}
SMALL = {"content-length": "5"}


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "_TURN_SECONDS", 0.05)
    monkeypatch.setattr(bodies, "_SECONDS", 0.5)


def _sends(content: bytes) -> Receive:
    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": content, "more_body": False}

    return receive


async def _stalls() -> dict[str, Any]:
    await asyncio.sleep(3600)
    return {}


async def _read(where: Bodies, site: str, headers: dict[str, str], receive: Receive) -> bytes:
    async with where.read(site, headers, receive) as body:
        return body


async def _refused(attempt: Coroutine[Any, Any, bytes]) -> bool:
    try:
        await attempt
    except Busy:
        return True
    return False


async def _beside(where: Bodies, sites: list[str], attempt: Coroutine[Any, Any, bytes]) -> bool:
    """Whether the attempt has to wait while large bodies of these sites are held up on their way."""
    held = [asyncio.create_task(_read(where, site, LARGE, _stalls)) for site in sites]
    await asyncio.sleep(0)
    refused = await _refused(attempt)
    for task in held:
        task.cancel()
    await asyncio.gather(*held, return_exceptions=True)
    return refused


def test_a_site_has_no_more_than_its_share() -> None:
    async def play() -> list[bool]:
        where = Bodies(SMALL_BYTES * 2)
        share = ["north"] * AT_ONCE_OF_A_SITE
        return [
            await _beside(where, share, _read(where, "north", LARGE, _sends(b"x"))),
            await _beside(
                where, share, _read(where, "north", {"transfer-encoding": "chunked"}, _sends(b"x"))
            ),
            await _beside(where, share, _read(where, "south", LARGE, _sends(b"x"))),
            await _beside(where, share, _read(where, "north", SMALL, _sends(b"beats"))),
            await _beside(where, share[1:], _read(where, "north", LARGE, _sends(b"x"))),
        ]

    assert asyncio.run(play()) == [True, True, False, False, False]


def test_all_together_have_no_more_than_fits_in_memory() -> None:
    async def play() -> list[bool]:
        where = Bodies(SMALL_BYTES * 2)
        sites = [f"site-{number}" for number in range(AT_ONCE)]
        return [
            await _beside(where, sites, _read(where, "north", LARGE, _sends(b"x"))),
            await _beside(where, sites, _read(where, "north", SMALL, _sends(b"beats"))),
            await _refused(_read(where, "north", LARGE, _sends(b"x"))),
        ]

    assert asyncio.run(play()) == [True, False, False]


@pytest.mark.parametrize("headers", [SMALL, LARGE])
def test_a_body_that_does_not_come_is_not_awaited_for_ever(headers: dict[str, str]) -> None:
    async def play() -> None:
        where = Bodies(SMALL_BYTES * 2)
        for _ in range(AT_ONCE_OF_A_SITE + 1):
            with pytest.raises(Busy, match="too slowly"):
                await _read(where, "north", headers, _stalls)

    bodies._SECONDS = 0.01
    asyncio.run(play())


def test_a_refused_body_gives_its_place_back() -> None:
    async def play() -> None:
        where = Bodies(10)
        for _ in range(AT_ONCE_OF_A_SITE + 1):
            with pytest.raises(RequestRefused, match="too-large"):
                await _read(where, "north", {"transfer-encoding": "chunked"}, _sends(b"x" * 11))

    asyncio.run(play())
