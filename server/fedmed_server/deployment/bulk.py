"""Numbers that go beside Flower's messages: sites fetch and send them in pieces, and this process holds a chunk of each piece.

Whoever asks has been admitted. A site fetches only what an order names that is out to it, and sends for such an order no more
than a reply to it may hold; how much it has sent is told to it, so that after any break it goes on where it was. What has come
whole is compared with its digest, in a thread, before it counts: the ServerApp, which takes one reply after the other, would
do that while nothing else is left to do.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from fedmed_common.errors import RequestRefused
from fedmed_common.wire_files import CHUNK_BYTES, DOWN_BYTES, HELD_HEADER, UP_BYTES, Filed, Part, parse_path
from fedmed_server.deployment import shelf
from fedmed_server.deployment.bodies import taken
from fedmed_server.deployment.places import Busy
from fedmed_server.deployment.shelf import Asked

T = TypeVar("T")

AT_ONCE, AT_ONCE_OF_A_SITE = 64, 2
"""So many pieces are on their way at a time. Whoever comes then waits for a turn, and after a while is told to come again."""

_SECONDS = 180.0
"""For a piece. What came of it until then stays."""

_THREADS = 4
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


class Bulk:
    """Serves the pieces of all runs below ``root``. Used in one event loop; files are read and written in threads."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._turns = asyncio.Semaphore(AT_ONCE)
        self._turns_of: defaultdict[str, asyncio.Semaphore] = defaultdict(
            lambda: asyncio.Semaphore(AT_ONCE_OF_A_SITE)
        )
        self._growing: set[Path] = set()
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="bulk")

    async def serve(self, site: str, node: int | None, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer an admitted request of the site, whose node has this number.

        Raises:
            RequestRefused: ``unknown-path``, ``not-asked``, ``too-large``, ``digest`` or ``disk``.
            Busy: it is not its turn, or it came too slowly.
            ClientDisconnect: the site is gone.
        """
        found = parse_path(scope["path"])
        method = _METHODS.get(scope["method"])
        if found is None or method is None:
            raise RequestRefused("unknown-path")
        part, begin, end = found
        order = shelf.asked(self._root, part.run, part.message)
        if order is None or order.node != node:
            raise RequestRefused("not-asked")
        begun = False

        async def noted(message: MutableMapping[str, Any]) -> None:
            nonlocal begun
            begun = True
            await send(message)

        async with taken(self._turns_of[site], self._turns):
            try:
                async with asyncio.timeout(_SECONDS):
                    await method(self, order, _Piece(part, begin, end), (scope, receive, noted))
            except TimeoutError:
                raise ClientDisconnect if begun else Busy("the piece took too long") from None
            except FileNotFoundError:  # the order is over
                raise RequestRefused("not-asked") from None
            except OSError as error:
                raise RequestRefused("disk") if error.errno in _FULL else error from None

    async def _give(self, order: Asked, piece: _Piece, how: tuple[Scope, Receive, Send]) -> None:
        part, send = piece.part, how[2]
        if order.down.get(part.digest) != part.size:
            raise RequestRefused("not-asked")
        if piece.size > DOWN_BYTES:
            raise RequestRefused("too-large")
        path = shelf.model_file(self._root, part.run, part.digest)
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            await _begin(send, piece.size, {})
            for place in range(piece.begin, piece.end, CHUNK_BYTES):
                size = min(CHUNK_BYTES, piece.end - place)
                chunk = await self._in_thread(partial(os.pread, descriptor, size, place))
                more = place + size < piece.end
                await send({"type": "http.response.body", "body": chunk, "more_body": more})
        finally:
            os.close(descriptor)

    async def _tell(self, _order: Asked, piece: _Piece, how: tuple[Scope, Receive, Send]) -> None:
        """What of the array is here. All of it is not before it was compared, which a crash may have left undone."""
        whole, held = shelf.reply_file(self._root, piece.part), self._held(piece.part)
        if held == piece.part.size and not whole.exists():
            with self._alone(whole):
                growing = whole.with_name(f"{whole.name}.part")
                await self._in_thread(partial(_finish, growing, whole, piece.part))
        await _answer_held(how[2], held)

    async def _take(self, order: Asked, piece: _Piece, how: tuple[Scope, Receive, Send]) -> None:
        scope, receive, send = how
        headers = dict(scope["headers"])
        if headers.get(b"content-length") != str(piece.size).encode() or piece.size > UP_BYTES:
            raise RequestRefused("too-large")
        part = piece.part
        others = shelf.others(self._root, part)
        if len(others) >= order.arrays or sum(others) + part.size > order.up:
            raise RequestRefused("too-large")
        whole = shelf.reply_file(self._root, part)
        with self._alone(whole):
            held = self._held(part)
            if piece.begin != held or whole.exists():
                await _answer_held(send, held, status=200 if piece.begin == held else 409)
                return
            growing = whole.with_name(f"{whole.name}.part")
            descriptor = os.open(growing, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            try:
                await self._append(descriptor, piece.size, receive)
            finally:
                os.close(descriptor)
            if piece.end == part.size:
                await self._in_thread(partial(_finish, growing, whole, part))
            await _answer_held(send, piece.end)

    async def _append(self, descriptor: int, size: int, receive: Receive) -> None:
        """The whole piece; of one that breaks off, what came."""
        left, waiting, amount = size, list[bytes](), 0
        while left:
            message = await receive()
            if message["type"] == "http.disconnect":
                left = 0
            else:
                chunk = message.get("body", b"")[:left]
                waiting.append(chunk)
                amount, left = amount + len(chunk), left - len(chunk)
                if left and not message.get("more_body", False):
                    raise ClientDisconnect
            if amount >= CHUNK_BYTES or not left:
                await self._in_thread(partial(_write, descriptor, waiting))
                waiting, amount = [], 0
            if message["type"] == "http.disconnect":
                raise ClientDisconnect

    def _held(self, part: Part) -> int:
        whole = shelf.reply_file(self._root, part)
        if whole.exists():
            return part.size
        growing = whole.with_name(f"{whole.name}.part")
        return growing.stat().st_size if growing.exists() else 0

    @contextmanager
    def _alone(self, path: Path) -> Iterator[None]:
        """Nobody else writes the file meanwhile: a site may send a piece again before the server knows that it gave up."""
        if path in self._growing:
            raise Busy("the piece is being received")
        self._growing.add(path)
        try:
            yield
        finally:
            self._growing.discard(path)

    async def _in_thread(self, call: Callable[[], T]) -> T:
        """What the call gives. Who gives up meanwhile waits for its end all the same: it uses files that are closed next."""
        running = asyncio.get_running_loop().run_in_executor(self._pool, call)
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            while not running.done():
                with suppress(asyncio.CancelledError):
                    await asyncio.wait({running})
            raise


class _Piece:
    def __init__(self, part: Part, begin: int, end: int) -> None:
        self.part, self.begin, self.end, self.size = part, begin, end, end - begin


_METHODS = {"GET": Bulk._give, "HEAD": Bulk._tell, "PUT": Bulk._take}


def _finish(growing: Path, whole: Path, part: Part) -> None:
    if not Filed.open(growing, part.digest, part.size).is_whole():
        growing.unlink()
        raise RequestRefused("digest")
    growing.rename(whole)


def _write(descriptor: int, parts: Sequence[bytes]) -> None:
    for part in parts:
        view = memoryview(part)
        while view:
            view = view[os.write(descriptor, view) :]


async def _answer_held(send: Send, held: int, status: int = 200) -> None:
    await _begin(send, 0, {HELD_HEADER: str(held)}, status)
    await send({"type": "http.response.body", "body": b""})


async def _begin(send: Send, size: int, headers: Mapping[str, str], status: int = 200) -> None:
    told = {"content-length": str(size), "content-type": "application/octet-stream", **headers}
    raw = [(name.encode(), value.encode()) for name, value in told.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})
