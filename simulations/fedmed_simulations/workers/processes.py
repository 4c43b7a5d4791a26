"""Workers as processes of this machine: spawned, warm, and told what to do over a pipe. Arrays are shared, not sent.

The parameters of a round are written once, into memory that every worker maps; a worker writes the arrays of its reply into
memory that this process maps. The end of a worker is the end of its pipe.
"""

from __future__ import annotations

import multiprocessing
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import BinaryIO

from flwr.app import Message

from fedmed_client.work.frames import filled, head, outline, read_head
from fedmed_client.workbench import SiteHome
from fedmed_common.errors import WireError, WorkerLost
from fedmed_simulations.workers import worker
from fedmed_simulations.workers.crew import Answered, Failed, Lost, Post, Ready, Shelf, Stepped
from fedmed_simulations.workers.memory import hand_over, taken_over, written

_GRACE_SECONDS = 5.0
_SPAWNED = multiprocessing.get_context("spawn")
_GONE = (EOFError, OSError, RuntimeError, WireError)
"""What reading raises when a worker ends, also in the middle of an answer."""


@dataclass(slots=True, kw_only=True)
class _Hand:
    """A worker's process. ``seat``: what it may use. ``laid``: the numbers of the arrays that it has mapped."""

    process: SpawnProcess
    connection: Connection
    seat: int
    laid: set[int] = field(default_factory=set)


class ProcessCrew:
    """Workers on this machine. ``seats``: the environment of each that there can be at a time."""

    def __init__(self, post: Post, homes: Sequence[SiteHome], seats: Sequence[Mapping[str, str]]) -> None:
        self._post = post
        self._homes = [SiteHome(site=home.site, folder=home.folder, open=home.open) for home in homes]
        self._seats, self._free = seats, list(range(len(seats)))
        self._hands: dict[int, _Hand] = {}
        self._listeners: list[threading.Thread] = []
        self._last = 0
        self._shelf: Shelf[BinaryIO] = Shelf(written, lambda file: file.close())

    def start(self) -> int:
        """Start one more; it tells when it is ready."""
        self._last += 1
        seat = self._free.pop(0)
        ours, theirs = _SPAWNED.Pipe()
        process = _SPAWNED.Process(
            target=worker.main, args=(theirs, dict(self._seats[seat])), name=f"worker-{self._last}"
        )
        with _without_interrupts():
            process.start()
        theirs.close()
        hand = _Hand(process=process, connection=ours, seat=seat)
        self._hands[self._last] = hand
        listener = threading.Thread(
            target=self._listen, args=(self._last, hand), name=process.name, daemon=True
        )
        self._listeners.append(listener)
        listener.start()
        return self._last

    def give(self, worker: int, message: Message) -> None:
        """Send a worker a message, and the memory of those of its arrays that it has not mapped."""
        hand, records = self._hands[worker], self._shelf.of(message)
        numbers = [laid.number for laid, _ in records.values()]
        new = {laid.number: (laid, file) for laid, file in records.values() if laid.number not in hand.laid}
        held = self._shelf.numbers()
        hand.laid = (hand.laid & set(held)) | set(numbers)
        with suppress(OSError):  # it is gone, which its listener tells
            hand.connection.send_bytes(
                head(records=numbers, new=[(n, laid.sizes) for n, (laid, _) in new.items()], held=held)
            )
            hand.connection.send_bytes(outline(message))
            for laid, file in new.values():
                hand_over(hand.connection, file, laid.sizes)

    def end(self, worker: int) -> None:
        """End it hard."""
        hand = self._hands.pop(worker)
        self._free.append(hand.seat)
        hand.process.kill()

    def close(self) -> None:
        """End them all, and wait until they are gone."""
        for number in list(self._hands):
            self.end(number)
        for listener in self._listeners:
            listener.join()
        self._shelf.clear()

    def expect(self, message: Message) -> None:
        """The message will be given to a worker, perhaps more than once."""
        self._shelf.expect(message)

    def release(self, message: Message) -> None:
        """The message will not be given to a worker any more."""
        self._shelf.release(message)

    def _listen(self, number: int, hand: _Hand) -> None:
        """The thread of a worker: hears it until it ends, and then says how."""
        try:
            hand.connection.send(self._homes)
            while True:
                self._hear(number, hand.connection)
        except _GONE:
            self._post(Lost(number, _end_of(hand.process)))
        except Exception as error:
            self._post(Failed(WorkerLost(f"the sites cannot be handed to a worker: {error}")))
        finally:
            hand.process.kill()
            hand.process.join()
            hand.connection.close()

    def _hear(self, number: int, connection: Connection) -> None:
        said = read_head(connection.recv_bytes())
        if "ready" in said:
            self._post(Ready(number))
        elif "step" in said:
            self._post(Stepped(number, said["step"]))
        else:
            drawn = connection.recv_bytes()
            self._post(Answered(number, filled(drawn, taken_over(connection, said["sizes"]))))


def _end_of(process: SpawnProcess) -> str:
    """How it ended, or that it was ended because it broke off without an end."""
    process.join(_GRACE_SECONDS)
    code = process.exitcode
    if code is None:
        return "broke off"
    return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """A process that is started here hears no Ctrl-C before it has said that it wants none."""
    resource_tracker.ensure_running()  # which would permit interrupts again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
