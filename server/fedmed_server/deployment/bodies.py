"""The bodies of requests, which are read before anyone can know who sent them: bounded in size, in number and in time."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from starlette.requests import ClientDisconnect
from starlette.types import Receive

from fedmed_common.errors import RequestRefused
from fedmed_server.deployment.places import Busy

AT_ONCE, AT_ONCE_OF_A_SITE = 64, 8
"""So many bodies are in memory before they are judged. Whoever comes then is not read from until it is its turn."""

SMALL_BYTES = 2**16
"""Heartbeats and questions never wait for uploads."""

_TURN_SECONDS = 10.0
"""The sender gives up after 20."""

_SECONDS = 180.0
"""Four parts of a model, which a site sends at once, make it over 1 Mbit/s."""
_DROPPED = 4


class Bodies:
    """Those of all sites. ``most_bytes``: of one."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._turns = asyncio.Semaphore(AT_ONCE)
        self._turns_of: defaultdict[str, asyncio.Semaphore] = defaultdict(
            lambda: asyncio.Semaphore(AT_ONCE_OF_A_SITE)
        )

    @asynccontextmanager
    async def read(self, site: str, headers: Mapping[str, str], receive: Receive) -> AsyncIterator[bytes]:
        """The body of a request that says it is the site's; its place is taken until the context ends.

        Raises:
            RequestRefused: ``too-large``.
            Busy: too many others are being read, or it came too slowly.
            ClientDisconnect: the sender is gone.
        """
        announced = headers.get("content-length", "0")
        if not announced.isdecimal() or int(announced) > _DROPPED * self._most_bytes:
            raise RequestRefused("too-large")
        is_small = "transfer-encoding" not in headers and int(announced) <= SMALL_BYTES
        turns = () if is_small else (self._turns_of[site], self._turns)
        async with taken(*turns):
            yield await self._whole(receive)

    async def _whole(self, receive: Receive) -> bytes:
        try:
            async with asyncio.timeout(_SECONDS):
                return await self._received(receive)
        except TimeoutError:
            raise Busy("the body came too slowly") from None

    async def _received(self, receive: Receive) -> bytes:
        """Of a body that is a little too large the rest is taken and dropped, so that the sender hears why."""
        body, size, more = bytearray(), 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            part, more = message.get("body", b""), message.get("more_body", False)
            size += len(part)
            if size <= self._most_bytes:
                body += part
            elif not more or size > _DROPPED * self._most_bytes:
                raise RequestRefused("too-large")
        return bytes(body)


@asynccontextmanager
async def taken(*turns: asyncio.Semaphore) -> AsyncIterator[None]:
    """A place in each, for as long as the context lasts.

    Raises:
        Busy: there was none for some seconds.
    """
    given: list[asyncio.Semaphore] = []
    try:
        try:
            async with asyncio.timeout(_TURN_SECONDS):
                for turn in turns:
                    await turn.acquire()
                    given.append(turn)
        except TimeoutError:
            raise Busy("too many bodies are being read") from None
        yield
    finally:
        for turn in given:
            turn.release()
