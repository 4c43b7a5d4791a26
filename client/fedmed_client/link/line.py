"""The line to the coordinator: it is kept, whatever happens to the network, and says in one place how it stands.

A call is tried until it succeeds. What can pass by itself is waited for, longer each time; what cannot ends the link, as its
:class:`ConnectionProblem`.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import TypeVar

from flwr.app import Message

from fedmed_client.link import diagnose, reach
from fedmed_client.link.bulk import Bulk
from fedmed_client.link.flower import AT_ONCE, Fleet, LinkForgotten, NotYet, RunOver, ServerBusy, Upload
from fedmed_client.link.messages import Announced, Fetched, inflate
from fedmed_client.link.pace import AGAIN_SHARE, Pace, waits
from fedmed_client.link.problems import MAY_PASS
from fedmed_client.link.reach import Reach
from fedmed_client.link.received import Incoming
from fedmed_client.link.status import Standing, Status
from fedmed_client.site.home import SiteFolder
from fedmed_common import wire_files
from fedmed_common.errors import (
    ConfigError,
    ConnectionProblem,
    FedmedError,
    IdentityRefused,
    ProvisionError,
    TransportAway,
    Unreachable,
)
from fedmed_common.wire_files import Filed, Part

T = TypeVar("T")

_FIRST_WAIT_SECONDS, _LONGEST_WAIT_SECONDS = 0.5, 10.0
_FIRST_LATER_SECONDS, _LONGEST_LATER_SECONDS = 4.0, 30.0
_FIRST_LOOK_SECONDS, _LONGEST_LOOK_SECONDS = 0.05, 2.0
_log = logging.getLogger(__name__)


class Stopped(Exception):
    """The link was told to stop."""


class Line:
    """One site's line. :meth:`open` it once; every method raises :class:`Stopped` when ``stop`` is set.

    Raises:
        ConnectionProblem: one that does not pass; at first, where the site was never connected, any.
    """

    def __init__(self, home: SiteFolder, status: Status, stop: threading.Event) -> None:
        self._home, self._status, self._stop = home, status, stop
        self._reach = reach.load(home)
        self._fleet, self._bulk = Fleet(self._reach), Bulk(self._reach)
        self._chance = random.Random(self._reach.boot)  # noqa: S311
        self._pace = Pace(self._chance)
        self._lease_seconds = self._pace.lease_seconds()
        self._is_patient = status.was_connected
        self._must_activate, self._turn = threading.Event(), threading.Lock()
        self._must_activate.set()

    @property
    def site(self) -> str:
        """The site's name in the consortium."""
        return self._reach.connection.site

    @property
    def reach(self) -> Reach:
        """How the coordinator is reached."""
        return self._reach

    def open(self) -> None:
        """Become the site's link, and stay it: a thread says so every few seconds."""
        try:
            if not self._is_patient:
                diagnose.look_up(self._reach)
            self._through(lambda: None)
        except Unreachable as problem:
            raise diagnose.closer_look(self._reach) or problem from problem
        threading.Thread(target=self._keep_beating, name="beat", daemon=True).start()

    def close(self) -> None:
        """Say goodbye, and end the connections."""
        if not self._must_activate.is_set():
            self._fleet.deactivate()
        self._fleet.close()
        self._bulk.close()

    def pull(self) -> Announced | None:
        """The next message, if there is one. A message that may be lost on the way is asked anew by the server."""

        def once() -> Announced | None:
            try:
                return self._pace.timed(self._fleet.pull)
            except ServerBusy:
                self._pace.put_off()
                raise
            except (ConnectionProblem, TransportAway):
                self._must_activate.set()
                raise

        return self._through(once)

    def pause(self, usual_seconds: float) -> float:
        """The seconds to wait after a :meth:`pull` that brought nothing: more than the usual ones, where the server is slow or
        serves many sites."""
        self._pace.told(self._fleet.interval_seconds)
        return self._pace.pause(usual_seconds)

    def fetch(self, announced: Announced) -> Message:
        """The announced message, whole.

        Raises:
            RunOver: nobody waits for it any more, or it is gone. Then the server is asked to ask anew.
            WireError: it cannot be read, or is more than an order may be.
        """
        try:
            names, fetched = announced.objects, Fetched()
            with ThreadPoolExecutor(AT_ONCE) as pool:
                parts = pool.map(lambda name: fetched.weigh(self._object(announced, name)), names)
                contents = dict(zip(names, parts, strict=True))
            self._through(lambda: self._fleet.confirm(announced))
        except RunOver:
            self._must_activate.set()
            raise
        return inflate(announced, contents)

    def bundle(self, run: int) -> tuple[str, bytes]:
        """The digest of the run's bundle, and the bundle.

        Raises:
            RunOver: the run has ended.
        """
        digest = self._through(lambda: self._fleet.check_run(run))
        return digest, self._through(lambda: self._fleet.bundle(run, digest))

    def read(self, part: Part, incoming: Incoming) -> None:
        """Fetch the numbers that go with a message; what has come already is not asked for again.

        Raises:
            RunOver: they are not to be had any more.
        """

        def once() -> None:
            before = incoming.size
            self._bulk.read(part, before, incoming.take)
            if incoming.size == before:
                raise TransportAway("the coordinator's server sends nothing of the numbers")

        while incoming.size < part.size:
            self._through(once)

    def push(self, reply: Message) -> None:
        """Send a reply, the numbers in files before the message that refers to them; while the network is away, it is kept.

        Raises:
            RunOver: nobody waits for it any more.
        """
        order, run = reply.metadata.reply_to_message_id, reply.metadata.run_id
        for numbers in wire_files.filed_in(reply.content).values():
            self._write(Part(run=run, message=order, digest=numbers.digest, size=numbers.size), numbers)
        while True:
            upload = self._through(lambda: self._fleet.announce(reply))
            self._through(partial(self._upload, upload))
            if not upload.refused:
                return
            self._stop.wait(_FIRST_WAIT_SECONDS)

    def is_over(self, run: int) -> bool:
        """Whether the Flower run has ended, as far as is known at this moment."""
        try:
            self._fleet.check_run(run)
        except RunOver:
            return True
        except ConnectionProblem as problem:
            self._weigh(problem)
        except LinkForgotten:
            self._must_activate.set()
        except TransportAway as away:
            self._weigh(away)
        return False

    def refresh(self) -> None:
        """Take up a certificate that was installed since; judge the time of the one in use."""
        if reach.certificate_stamp(self._home) != self._reach.certificate_stamp:
            self._must_activate.set()
        else:
            self._reach.check_time()

    def _write(self, part: Part, numbers: Filed) -> None:
        """Send all that the server has not; it is asked what that is at first, and after each failure."""
        held: int | None = None

        def once() -> int:
            nonlocal held
            begin, held = held, None
            begin = self._bulk.held(part) if begin is None else begin
            held = begin if begin == part.size else self._bulk.write(part, numbers, begin)
            return held

        while self._through(once) < part.size:
            pass

    def _upload(self, upload: Upload) -> None:
        self._fleet.upload(upload)

    def _object(self, announced: Announced, name: str) -> bytes:
        """One object. The server itself may not have it yet, and may never get it: it is waited for as long as a lease.

        Raises:
            RunOver: it does not come.
        """
        wait = waits(_FIRST_LOOK_SECONDS, _LONGEST_LOOK_SECONDS, self._chance)
        end = 0.0
        while True:
            try:
                return self._through(lambda: self._fleet.pull_object(announced.run, name))
            except NotYet:
                end = end or time.monotonic() + self._pace.lease_seconds()
                if time.monotonic() > end:
                    raise RunOver("a part of the message does not come") from None
                self._stop.wait(next(wait))

    def _through(self, call: Callable[[], T]) -> T:
        """What the call gives, tried until it does; before it, the link is activated where that is due."""
        wait = waits(_FIRST_WAIT_SECONDS, _LONGEST_WAIT_SECONDS, self._chance)
        later = waits(_FIRST_LATER_SECONDS, _LONGEST_LATER_SECONDS, self._chance)
        while not self._stop.is_set():
            try:
                self._activate()
                result = call()
            except ServerBusy as busy:
                self._weigh(busy)
                self._stop.wait(next(later))
                continue
            except LinkForgotten:
                self._must_activate.set()
            except (ConnectionProblem, TransportAway) as problem:
                self._weigh(problem)
            else:
                self._is_patient = True
                self._status.say(Standing(state="connected"))
                return result
            self._stop.wait(next(wait))
        raise Stopped

    def _activate(self) -> None:
        with self._turn:
            if self._must_activate.is_set():
                self._renew()
                self._reach.check_time()
                self._fleet.activate(self._lease_seconds)
                self._must_activate.clear()

    def _renew(self) -> None:
        if reach.certificate_stamp(self._home) != self._reach.certificate_stamp:
            with suppress(ProvisionError, ConfigError):  # it is being installed at this moment
                renewed = reach.load(self._home)
                self._fleet.close()
                self._bulk.close()
                self._reach, self._fleet, self._bulk = renewed, Fleet(renewed), Bulk(renewed)
                _log.warning("a new certificate is in use")

    def _weigh(self, problem: ConnectionProblem | TransportAway) -> None:
        """Raise what does not pass; say the rest, and wait."""
        if isinstance(problem, ConnectionProblem) and not self._passes(problem):
            raise problem
        self._status.say(Standing.of(problem, "waiting"))

    def _passes(self, problem: ConnectionProblem) -> bool:
        """Whether to wait. A new key that the coordinator has signed shuts the present one out until its answer is installed."""
        if isinstance(problem, IdentityRefused) and self._home.next_key_file.exists():
            return True
        return self._is_patient and isinstance(problem, MAY_PASS)

    def _keep_beating(self) -> None:
        wait_seconds = self._pace.until_beat(self._lease_seconds)
        while not self._stop.wait(wait_seconds):
            self._lease_seconds = self._pace.lease_seconds()
            wait_seconds = self._pace.until_beat(self._lease_seconds)
            try:
                self._fleet.beat(self._lease_seconds)
            except LinkForgotten:
                self._must_activate.set()
            except (FedmedError, RuntimeError) as problem:  # the latter of connections that are being renewed
                # The calls of the work meet the same problem, and weigh it.
                _log.info("a beat failed: %s", type(problem).__name__)
                wait_seconds *= AGAIN_SHARE
