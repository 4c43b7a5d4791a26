"""A relay between a hospital and its server: a network that can be cut and stalled, or a proxy that reads along."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Any, Self

_CHUNK = 65536
_STUCK_SECONDS = 1.0


class Relay:
    """Passes bytes between ``port``, a free one of 127.0.0.1, and ``to``, in a thread of its own.

    ``inside`` and ``outside``: end TLS here and speak it anew to the server. ``record``: a file for every byte that passes.
    """

    def __init__(
        self,
        to: int,
        *,
        inside: ssl.SSLContext | None = None,
        outside: ssl.SSLContext | None = None,
        record: Path | None = None,
    ) -> None:
        self._to, self._inside, self._outside, self._record = to, inside, outside, record
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="relay", daemon=True)
        self._open: set[asyncio.Task[None]] = set()
        self._flows = asyncio.Event()
        self._refuses = False
        self.port = 0
        self.connections = 0

    def __enter__(self) -> Self:
        self._thread.start()
        self.port = self._do(self._listen())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._do(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def reset(self) -> None:
        """Break every connection; new ones are taken."""
        self._do(self._reset())

    def cut(self) -> None:
        """Break every connection and take no new one, until :meth:`restore`."""
        self._refuses = True
        self._do(self._reset())

    def stall(self) -> None:
        """Pass nothing on, and break nothing, until :meth:`restore`."""
        self._loop.call_soon_threadsafe(self._flows.clear)

    def restore(self) -> None:
        """Pass everything on again."""
        self._refuses = False
        self._loop.call_soon_threadsafe(self._flows.set)

    def _do(self, what: Coroutine[Any, Any, Any]) -> Any:
        future: Future[Any] = asyncio.run_coroutine_threadsafe(what, self._loop)
        return future.result(30)

    async def _listen(self) -> int:
        self._flows.set()
        self._server = await asyncio.start_server(self._take, "127.0.0.1", 0, ssl=self._inside)
        return int(self._server.sockets[0].getsockname()[1])

    async def _close(self) -> None:
        """End all, and what was just being taken with it: a server that is closed before leaves that open."""
        self._refuses = True
        for listener in self._server.sockets:
            self._loop.remove_reader(listener)
        await self._reset()
        while late := asyncio.all_tasks() - {asyncio.current_task()}:
            _, stuck = await asyncio.wait(late, timeout=_STUCK_SECONDS)
            for task in stuck:
                task.cancel()
        self._server.close()

    async def _reset(self) -> None:
        tasks = list(self._open)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if self._refuses or task is None:
            writer.transport.abort()
            return
        self._open.add(task)
        self.connections += 1
        try:
            await self._relay(reader, writer)
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            self._open.discard(task)
            writer.transport.abort()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host = "localhost" if self._outside else None
        back, forth = await asyncio.open_connection(
            "127.0.0.1", self._to, ssl=self._outside, server_hostname=host
        )
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(self._pump(reader, forth))
                both.create_task(self._pump(back, writer))
        except* OSError:
            pass
        finally:
            forth.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while chunk := await reader.read(_CHUNK):
            await self._flows.wait()
            if self._record is not None:
                with self._record.open("ab") as file:
                    file.write(chunk)
            writer.write(chunk)
            await writer.drain()
        with contextlib.suppress(OSError, NotImplementedError):
            writer.write_eof()
