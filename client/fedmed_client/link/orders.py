"""What becomes of a message: it is checked, let in or refused, carried out by the worker, and answered."""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from dataclasses import dataclass, replace
from typing import TypeAlias

from flwr.app import Message

from fedmed_client.link import approvals
from fedmed_client.link.carrying import Carrying, seconds_left
from fedmed_client.link.flower import RunOver
from fedmed_client.link.line import Line
from fedmed_client.link.received import Received
from fedmed_client.link.status import Status, Work
from fedmed_client.site.audit import AuditLog, Event
from fedmed_client.site.home import SiteFolder
from fedmed_client.work.channel import WorkerChannel
from fedmed_client.work.limits import check_now
from fedmed_common import bundle, wire, wire_files
from fedmed_common.bundle import Approved
from fedmed_common.errors import (
    BundleRefused,
    ConnectionProblem,
    FedmedError,
    PolicyRefusal,
    WireError,
    WorkerLost,
)

_STOP_SECONDS = 0.2
_LOOK_SECONDS = 3.0
_SUCCESSOR_SECONDS = 60.0
_KNOWN_RUNS, _KNOWN_WAITS = 16, 64
_Asked: TypeAlias = tuple[str, int, wire.Kind, str]
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """A reply, and the order that it answers; None where the message was no order. ``again``: that the order has to wait was
    told before, and noted then."""

    reply: Message
    order: wire.Order | None
    again: bool = False


class Desk:
    """Answers messages, one at a time. ``stop``: leave the worker to itself, and return nothing."""

    def __init__(self, home: SiteFolder, line: Line, status: Status, stop: threading.Event) -> None:
        self._home, self._line, self._status, self._stop = home, line, status, stop
        self._audit = AuditLog(home.path)
        self._received = Received(home.received, line.read)
        self._bundles: dict[int, Approved | str] = {}
        self._waits: dict[_Asked, str] = {}
        self._next: Message | None = None
        self._ended_at: float | None = None

    def answer(self, message: Message) -> Answered | None:
        """The answer to a message; None where the link is to stop before there is one.

        Raises:
            ConnectionProblem: the site was shut out while it worked.
            RunOver: nobody waits for an answer.
        """
        seconds_left(message)
        try:
            kind = wire.Kind(message.metadata.message_type)
            order = wire.unpack_order(message.content, kind, arrays=False)
        except (ValueError, WireError):
            return self.unreadable(message)
        try:
            if _asked(order) not in self._waits:
                self._audit.append("received", **_about(order))
            offered = self._let_in(message.metadata.run_id, order)
            if self._waits.pop(_asked(order), ""):
                self._audit.append("received", **_about(order))
            reply = self._carried(self._received.complete(message), order, offered)
        except ConnectionProblem:
            raise
        except FedmedError as error:
            return self._refused(message, order, error)
        except (
            OSError
        ) as error:  # what cannot be written down must not happen; a full disk is the usual cause
            _log.error("the site's folder cannot be written: %s", error.strerror)
            reply = self._reply(message, order, code=PolicyRefusal.code, rule="disk")
        return Answered(reply=reply, order=order) if reply is not None else None

    def unreadable(self, message: Message) -> Answered:
        """The answer to what is no order that this site can read."""
        _log.warning("a message was no order")
        reply = wire.Reply(site=self._line.site, run="", round=0, attempt=0, code=WireError.code)
        return Answered(reply=Message(wire.pack_reply(reply), reply_to=message), order=None)

    def instead(self, message: Message, answered: Answered) -> Answered | None:
        """The answer in place of one that the server does not take; None where it had no arrays already."""
        order = answered.order
        if order is None or wire.parameter_bytes(answered.reply.content) == 0:
            return None
        self._note("failed", order, code=WireError.code)
        return Answered(reply=self._reply(message, order, code=WireError.code), order=order)

    def sent(self, answered: Answered) -> None:
        """Note that the answer is with the server."""
        if answered.order is not None and not answered.again:
            self._note("sent", answered.order)

    def _let_in(self, run: int, order: wire.Order) -> Approved:
        """Refuse what the site does not carry out now.

        Raises:
            BundleRefused, PolicyRefusal, ConfigError: why.
        """
        offered = self._offered(run)
        if order.experiment != offered.experiment.order_text():
            raise BundleRefused("another experiment")
        if order.round > offered.experiment.rounds:
            raise BundleRefused("more rounds than the experiment has")
        site = self._home.site()
        approvals.check(self._home, site, offered)
        check_now(site, self._home.path)
        return offered

    def _offered(self, run: int) -> Approved:
        """What the Flower run's bundle asks for; a run has one bundle for its whole life."""
        if run not in self._bundles:
            digest, content = self._line.bundle(run)
            while len(self._bundles) >= _KNOWN_RUNS:
                del self._bundles[next(iter(self._bundles))]
            self._bundles[run] = self._checked(digest, content)
        known = self._bundles[run]
        if isinstance(known, str):
            raise BundleRefused(known)
        return known

    def _checked(self, digest: str, content: bytes) -> Approved | str:
        """What the bundle asks for, or the reason for which it is refused. No exception is kept: with it, its frames would be."""
        try:
            if hashlib.sha256(content).hexdigest() != digest:
                raise BundleRefused("tampered bundle")
            return bundle.check(content, self._line.reach.connection.signer_key())
        except BundleRefused as refused:
            return refused.reason

    def _carried(self, message: Message, order: wire.Order, offered: Approved) -> Message | None:
        """The worker's reply; None where the link stops first.

        Raises:
            WorkerLost: the worker ended.
            ConnectionProblem: the site was shut out.
            RunOver: the order has expired.
        """
        carrying = Carrying(self._home, message, seconds_left(message))
        work = Work(run=order.run, kind=order.kind.value, round=order.round)
        self._status.work(work)
        look_at, self._ended_at = time.monotonic() + _LOOK_SECONDS, None
        try:
            while not carrying.done.wait(_STOP_SECONDS):
                if self._stop.is_set():
                    return None
                if time.monotonic() >= look_at:
                    self._status.work(replace(work, step=carrying.step))
                    if not self._is_wanted(message, order, offered):
                        carrying.cancel()
                    look_at = time.monotonic() + _LOOK_SECONDS
        except ConnectionProblem:
            carrying.cancel()
            raise
        finally:
            self._status.work(None)
        return carrying.reply()

    def _is_wanted(self, message: Message, order: wire.Order, offered: Approved) -> bool:
        """Whether to go on: while the Flower run does, and for a while after its end, when its successor may ask the same."""
        if approvals.is_rejected(self._home, offered.hash):
            return False
        if self._ended_at is None:
            if not self._line.is_over(message.metadata.run_id):
                return True
            self._ended_at = time.monotonic()
        if self._next is None:
            self._next = self.take()
        if self._next is not None:
            return _asks_the_same(self._next, message, order)
        return time.monotonic() - self._ended_at < _SUCCESSOR_SECONDS

    def take(self) -> Message | None:
        """The next message, if there is one."""
        waiting, self._next = self._next, None
        if waiting is not None:
            return waiting
        announced = self._line.pull()
        if announced is None:
            return None
        try:
            return self._line.fetch(announced)
        except RunOver as problem:
            _log.warning("a message is left: %s", problem)
            return None
        except WireError as problem:
            _log.warning("%s", problem)
            return announced.message  # without its content: no order, and answered as such

    def _refused(self, message: Message, order: wire.Order, error: FedmedError) -> Answered:
        code, rule = error.code, ""
        if isinstance(error, PolicyRefusal | BundleRefused):
            code, rule = PolicyRefusal.code, error.rule if isinstance(error, PolicyRefusal) else error.code
        reply = self._reply(message, order, code=code, rule=rule)
        if rule in wire.WAITING_RULES and self._waits.get(_asked(order)) == rule:
            return Answered(reply=reply, order=order, again=True)
        _log.warning("round %s of %s: %s", order.round, order.run, error)
        event: Event = "refused" if rule else "worker-lost" if isinstance(error, WorkerLost) else "failed"
        reason = error.reason if isinstance(error, BundleRefused) else ""
        self._note(event, order, code=code, rule=rule, **({"reason": reason} if reason else {}))
        self._waits.pop(_asked(order), None)
        if rule in wire.WAITING_RULES:
            while len(self._waits) >= _KNOWN_WAITS:
                del self._waits[next(iter(self._waits))]
            self._waits[_asked(order)] = rule
        if rule == "approval":  # what a link before this one handed over may still be at work
            WorkerChannel(self._home.path).leave(order.run)
        return Answered(reply=reply, order=order)

    def _note(self, event: Event, order: wire.Order, **more: str) -> None:
        """Of what has happened already; it is told even where it cannot be written down."""
        try:
            self._audit.append(event, **_about(order), **more)
        except OSError as error:
            _log.error("the audit log cannot be written: %s", error.strerror)

    def _reply(self, message: Message, order: wire.Order, *, code: str, rule: str = "") -> Message:
        reply = wire.Reply(
            site=self._line.site,
            run=order.run,
            round=order.round,
            attempt=order.attempt,
            code=code,
            rule=rule,
        )
        return Message(wire.pack_reply(reply), reply_to=message)


def _asked(order: wire.Order) -> _Asked:
    """What is asked, whatever the attempt."""
    return order.run, order.round, order.kind, order.split


def _about(order: wire.Order) -> dict[str, str | int]:
    about: dict[str, str | int] = {
        "run": order.run,
        "round": order.round,
        "kind": order.kind.value,
        "attempt": order.attempt,
    }
    return about | ({"split": order.split} if order.kind is wire.Kind.EVALUATE else {})


def _asks_the_same(later: Message, message: Message, order: wire.Order) -> bool:
    """Whether a later message is answered by the same reply."""
    try:
        kind = wire.Kind(later.metadata.message_type)
        other = wire.unpack_order(later.content, kind, arrays=False)
    except (ValueError, WireError):
        return False
    if replace(other, attempt=order.attempt, base="") != replace(order, base=""):
        return False
    return bool(order.model) or _arrays(later) == _arrays(message)


def _arrays(message: Message) -> dict[str, dict[str, bytes]]:
    """What is in the message, or in its place the digest."""
    return {
        name: {key: array.data for key, array in record.items()}
        for name, record in wire_files.array_records(message.content).items()
    }
