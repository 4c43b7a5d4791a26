"""Flower's Grid of a simulation whose sites work at once, in workers that may be lost.

A thread gives orders to workers and hears of them, so that they have work while replies are added up. Replies are taken in the
roster's order, and only so many orders are at work or wait as finished replies: memory does not grow with the number of sites. An
order whose worker is gone is done again by another one. That gives the same reply: a site's randomness comes of seed, round and
name, and what it keeps between rounds is kept by round.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Self

from flwr.app import Message

from fedmed_common.errors import WorkerLost
from fedmed_simulations.grid import SimulatedGrid
from fedmed_simulations.workers.crew import Answered, Crew, Event, Failed, Lost, Post, Ready, Stepped
from fedmed_simulations.workers.schedule import Order, Schedule, Size

_LEAST_WINDOW, _WINDOW_TIMES = 8, 2
_MOST_GIVEN, _MOST_FALSE_STARTS = 3, 3
_LOOK_SECONDS = 0.5
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """``workers``: how many. ``names``: of the sites, by node. ``size``: of a node's work. ``on_step(node, step)``: told of the
    steps of the site whose reply is awaited. ``slow_times``: an order that takes so many times as long as expected, and
    ``slow_seconds`` at least, goes to an idle worker where there is one, and its own is ended; None: it is waited for.
    ``patience_seconds``: how long none of the workers may be ready."""

    workers: int
    names: dict[int, str]
    size: Size
    on_step: Callable[[int, int], None]
    stop: threading.Event
    slow_times: float | None = None
    slow_seconds: float = 60.0
    patience_seconds: float = 600.0


class WorkersGrid(SimulatedGrid):
    """To be entered: that starts the workers. ``hire``: makes the crew, which tells its events to what it is given."""

    def __init__(self, hire: Callable[[Post], Crew], settings: Settings) -> None:
        super().__init__(len(settings.names))
        self._settings = settings
        self._events: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        self._crew = hire(self._events.put)
        self._changed = threading.Condition()
        self._schedule = Schedule(max(_LEAST_WINDOW, _WINDOW_TIMES * settings.workers), settings.size)
        self._workers: dict[int, Order | None] = {}
        self._starting: set[int] = set()
        self._replies: dict[str, Message] = {}
        self._awaited = ""
        self._false_starts = 0
        self._ready_at = time.monotonic()
        self._failure: Exception | None = None
        self._is_closed = False
        self._thread = threading.Thread(target=self._attend, name="workers", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_closed = True
        self._events.put(None)
        self._thread.join()
        self._replies.clear()

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The replies to the named orders, once they are there. None where the run is to stop meanwhile.

        Raises:
            WorkerLost: an order has cost several workers, or none can be started.
        """
        return [reply for name in message_ids if (reply := self._await(name)) is not None]

    def _await(self, name: str) -> Message | None:
        with self._changed:
            if name not in self._schedule:
                return None
            self._awaited = name
            self._events.put(None)
            while name not in self._replies:
                if self._failure is not None:
                    raise self._failure
                if self._settings.stop.is_set():
                    return None
                self._changed.wait(_LOOK_SECONDS)
            self._crew.release(self._schedule.remove(name).message)
            return self._replies.pop(name)

    def _take(self, identifier: str, message: Message) -> None:
        """Nothing begins before a reply is awaited: until then it is not known which order is the longest."""
        with self._changed:
            self._awaited = ""
            self._crew.expect(message)
            self._schedule.add(Order(name=identifier, message=message))

    def _leave(self, identifier: str) -> None:
        with self._changed:
            self._crew.release(self._schedule.remove(identifier).message)
            self._replies.pop(identifier, None)

    def _attend(self) -> None:
        """The thread: until the grid is left."""
        try:
            for _ in range(self._settings.workers):
                self._start()
            while not self._is_closed:
                event = self._next_event()
                with self._changed:
                    if event is not None:
                        self._hear(event)
                    self._check_patience()
                    self._hurry()
                    self._give_out()
                    self._changed.notify_all()
                del event  # it may hold a reply as large as the model
        except Exception as error:
            with self._changed:
                self._failure = error
                self._changed.notify_all()
        finally:
            self._crew.close()

    def _next_event(self) -> Event | None:
        try:
            return self._events.get(timeout=_LOOK_SECONDS)
        except queue.Empty:
            return None

    def _start(self) -> None:
        self._starting.add(self._crew.start())

    def _hear(self, event: Event) -> None:
        """Raises what a :class:`Failed` tells."""
        if isinstance(event, Failed):
            raise event.error
        if isinstance(event, Ready) and event.worker in self._starting:
            self._starting.discard(event.worker)
            self._workers[event.worker] = None
            self._false_starts = 0
        elif isinstance(event, Lost):
            self._lose(event.worker, event.why)
        elif isinstance(event, Stepped | Answered) and (order := self._workers.get(event.worker)) is not None:
            if isinstance(event, Answered):
                self._workers[event.worker] = None
                self._keep(order, event.reply)
            elif order.name == self._awaited:
                self._settings.on_step(order.node, event.step)

    def _keep(self, order: Order, reply: Message) -> None:
        self._schedule.finish(order, time.monotonic())
        if order.name in self._schedule:
            self._replies[order.name] = reply

    def _lose(self, worker: int, why: str) -> None:
        """Start another in its place; its order is to be done again.

        Raises:
            WorkerLost: it has cost so many that it is to blame, or workers do not even start.
        """
        if worker not in self._workers and worker not in self._starting:
            return
        self._crew.end(worker)
        if worker in self._starting:
            self._starting.discard(worker)
            self._false_starts += 1
            if self._false_starts > _MOST_FALSE_STARTS:
                raise WorkerLost(f"no worker can be started: {why}\n  fix: see what it said above")
        order = self._workers.pop(worker, None)
        if order is not None:
            site = self._settings.names[order.node]
            if order.given >= _MOST_GIVEN:
                raise WorkerLost(
                    f"site '{site}': {order.given} workers were lost over its order '{order.kind}'; the last one {why}\n"
                    "  fix: see what it said above; where nothing is, whether memory is short: fewer --workers need less"
                )
            _log.warning("a worker %s; the order of site '%s' is done again", why, site)
            self._schedule.take_back(order)
        self._start()

    def _check_patience(self) -> None:
        """Raises :class:`WorkerLost` where no worker has been ready for too long."""
        now = time.monotonic()
        if self._workers:
            self._ready_at = now
        elif now - self._ready_at > self._settings.patience_seconds:
            raise WorkerLost(
                f"no worker was ready for {now - self._ready_at:.0f} s\n"
                "  fix: see whether there are machines with the cores and GPUs that a site takes"
            )

    def _hurry(self) -> None:
        """End the worker of an order that takes far longer than it should, where another worker has nothing else to do."""
        times = self._settings.slow_times
        if times is None or None not in self._workers.values() or self._schedule.next(self._awaited):
            return
        slow = self._schedule.slow(times, self._settings.slow_seconds, time.monotonic())
        for worker, order in list(self._workers.items()):
            if slow is not None and order is slow:
                slow.given -= 1
                self._lose(worker, "is slow")

    def _give_out(self) -> None:
        """Give every worker that has nothing to do an order, if a reply is awaited at all."""
        for worker, order in self._workers.items():
            if order is not None or not self._awaited:
                continue
            following = self._schedule.next(self._awaited)
            if following is None:
                return
            self._schedule.begin(following, time.monotonic())
            self._workers[worker] = following
            self._crew.give(worker, following.message)
