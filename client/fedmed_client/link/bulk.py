"""Numbers on their way beside Flower's messages: one attempt at each piece, from and to files, a chunk at a time.

What a piece's request says is in its path, which is signed; its numbers are known by their digest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import httpx

from fedmed_client.link import problems
from fedmed_client.link.flower import meant_by, sign_for
from fedmed_client.link.reach import Reach, whole
from fedmed_common.errors import TransportAway
from fedmed_common.wire_files import DOWN_BYTES, HELD_HEADER, UP_BYTES, Filed, Part


class Bulk:
    """One site's requests for numbers. They raise as those of :class:`fedmed_client.link.flower.Fleet`: ``RunOver`` where the
    server neither sends them nor waits for them any more, ``NotTaken`` where it does not take so many."""

    def __init__(self, reach: Reach) -> None:
        self._reach, self._client = reach, reach.client()

    def read(self, part: Part, begin: int, take: Callable[[bytes], object]) -> None:
        """Ask for a piece from ``begin`` on. ``take`` is given what comes as it comes, also where the rest then does not."""
        end = min(begin + DOWN_BYTES, part.size)
        with self._asked("GET", part.path(begin, end)) as answer:
            left = end - begin
            for chunk in answer.iter_raw():
                left -= len(chunk)
                if left < 0:
                    raise problems.not_the_coordinator(self._reach, "it sends more than it was asked for")
                take(chunk)

    def held(self, part: Part) -> int:
        """How many of the bytes the server has, from the first on."""
        with self._asked("HEAD", part.path(0, part.size)) as answer:
            return self._told(answer, part)

    def write(self, part: Part, numbers: Filed, begin: int) -> int:
        """Send a piece from ``begin`` on, which is what the server has; what it has then."""
        end = min(begin + UP_BYTES, part.size)
        length = {"content-length": str(end - begin)}
        with self._asked("PUT", part.path(begin, end), numbers.chunks(begin, end), length) as answer:
            if self._told(answer, part) != end:
                raise TransportAway("the coordinator's server has another part of the numbers")
        return end

    def close(self) -> None:
        """End the connections."""
        self._client.close()

    @contextmanager
    def _asked(
        self,
        method: str,
        path: str,
        content: Iterable[bytes] | None = None,
        headers: dict[str, str] | None = None,
    ) -> Iterator[httpx.Response]:
        request = self._client.build_request(
            method, f"https://{self._reach.address}{path}", content=content, headers=headers
        )
        sign_for(self._reach, request, b"")
        try:
            with self._client.opened(request) as answer:
                if answer.status_code == httpx.codes.CONFLICT:
                    raise TransportAway("the coordinator's server has another part of the numbers")
                if answer.status_code != httpx.codes.OK:
                    raise meant_by(whole(answer), self._reach)
                yield answer
        except httpx.TransportError as error:
            raise problems.of_transport(error, self._reach) from error
        except httpx.DecodingError as error:
            raise problems.not_the_coordinator(self._reach, "its answer cannot be read") from error

    def _told(self, answer: httpx.Response, part: Part) -> int:
        told = answer.headers.get(HELD_HEADER, "")
        if not told.isdecimal() or int(told) > part.size:
            raise problems.not_the_coordinator(self._reach, "its answer cannot be read")
        return int(told)
