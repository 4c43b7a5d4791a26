"""The link's way to the worker: hand it a message, hear its steps, get its reply, and notice at once when it is gone.

Imports nothing heavy: the link never holds torch.
"""

from __future__ import annotations

import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
from flwr.app import Message

from fedmed_client.site.home import SiteFolder
from fedmed_client.work import frames
from fedmed_common.children import pid_file
from fedmed_common.errors import WireError, WorkerLost
from fedmed_common.site_config import Limits

_READY_SECONDS = 120.0
_GRACE_SECONDS = 10.0


def _no_step(_step: int) -> None:
    return


class WorkerChannel:
    """One message at a time to the worker of a site's folder. :meth:`cancel` may be called from any thread."""

    def __init__(self, home: Path, limits: Limits | None = None) -> None:
        self._home, self._limits = home, limits or Limits()
        self._carried = ""

    def carry(
        self,
        message: Message,
        *,
        on_step: Callable[[int], None] = _no_step,
        deadline_seconds: float | None = None,
    ) -> Message:
        """The worker's reply to the message. ``on_step`` is told each training step that it reports.

        A worker that shows no progress for ``limits.stall_seconds`` is ended, and its supervisor starts another; so is one
        that is not done within ``deadline_seconds`` (or ``limits.order_seconds``, if that is less) of its first sign, and
        does not stop then. One that gives no sign for as long, because it is still being started, is left alone.

        Raises:
            WorkerLost: the worker ended, was ended, or could not be reached.
        """
        allowed = min(deadline_seconds or self._limits.order_seconds, self._limits.order_seconds)
        self._carried = message.metadata.message_id
        with _connected(self._home) as channel:
            call = channel.stream_stream(frames.CARRY)(
                frames.pieces(message, SiteFolder(self._home).received, order=self._carried),
                wait_for_ready=True,
            )
            try:
                return self._answer(_Answers(call), on_step, allowed)
            except (_NoProgress, WireError) as problem:
                self._end_worker()
                raise WorkerLost(f"the worker was ended: {problem}") from None
            finally:
                self._carried = ""
                call.cancel()

    def cancel(self) -> None:
        """Ask the worker to leave the message that is carried now; it answers it at its next step, with code ``interrupted``."""
        carried = self._carried
        if carried:
            with suppress(grpc.RpcError), _connected(self._home) as channel:
                channel.unary_unary(frames.CANCEL)(frames.head(order=carried), timeout=_GRACE_SECONDS)

    def leave(self, run: str) -> None:
        """Ask the worker to leave what it still does for a run, also what a link before this one handed it."""
        with suppress(grpc.RpcError), _connected(self._home) as channel:
            channel.unary_unary(frames.CANCEL)(frames.head(run=run), timeout=_GRACE_SECONDS)

    def _answer(self, answers: _Answers, on_step: Callable[[int], None], seconds: float) -> Message:
        patience = max(self._limits.stall_seconds, _READY_SECONDS)
        if not answers.begin(min(patience, seconds)):
            if seconds < patience:
                raise WorkerLost("the worker is not ready")
            raise _NoProgress("no progress")
        try:
            return self._listen(answers, on_step, time.monotonic() + seconds)
        except _TooLate:
            self.cancel()
            return self._listen(answers, on_step, time.monotonic() + _GRACE_SECONDS)

    def _listen(self, answers: _Answers, on_step: Callable[[int], None], end: float) -> Message:
        patience = self._limits.stall_seconds
        while True:
            left = end - time.monotonic()
            frame = answers.next(min(patience, left))
            if frame is None:
                raise (_NoProgress("no progress") if patience < left else _TooLate("not done in time"))
            fields = frames.read_head(frame)
            if "size" in fields:
                return frames.joined(fields, answers.following(patience), SiteFolder(self._home).outbox)
            if fields.get("step"):
                on_step(fields["step"])

    def _end_worker(self) -> None:
        """End the worker hard: one that hangs does not listen, and one that is stopped cannot."""
        with suppress(OSError, ValueError):
            os.kill(int(pid_file(self._home, "worker").read_text()), signal.SIGKILL)


class _NoProgress(Exception):
    """The worker does not move."""


class _TooLate(_NoProgress):
    """The worker moves, and has had its time."""


class _Answers:
    """The frames of a call, read in a thread so that the wait for each can end."""

    def __init__(self, call: Any) -> None:
        self._frames: queue.SimpleQueue[bytes | Exception] = queue.SimpleQueue()
        self._first: bytes | None = None
        threading.Thread(target=self._read, args=(call,), daemon=True).start()

    def _read(self, call: Any) -> None:
        try:
            for frame in call:
                self._frames.put(frame)
            self._frames.put(WorkerLost("the worker's answer is not whole"))
        except grpc.RpcError as error:
            self._frames.put(WorkerLost(f"the worker ended ({error.code().name.lower()})"))

    def begin(self, seconds: float) -> bool:
        """Whether the first frame comes in time; it stays to be taken.

        Raises:
            WorkerLost: none comes any more.
        """
        self._first = self.next(seconds)
        return self._first is not None

    def next(self, seconds: float) -> bytes | None:
        """The next frame, or None where none comes in time.

        Raises:
            WorkerLost: none comes any more.
        """
        first, self._first = self._first, None
        if first is not None:
            return first
        try:
            frame = self._frames.get(timeout=max(seconds, 0.0))
        except queue.Empty:
            return None
        if isinstance(frame, Exception):
            raise frame
        return frame

    def following(self, seconds: float) -> Iterator[bytes]:
        """All frames until none comes in time."""
        while (frame := self.next(seconds)) is not None:
            yield frame


def _connected(home: Path) -> Any:
    options = [
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.enable_http_proxy", 0),
        ("grpc.max_reconnect_backoff_ms", 500),
    ]
    return grpc.insecure_channel(frames.address(SiteFolder(home).worker_socket.absolute()), options=options)
