"""One order to many sites: all are asked at once, and their answers come one at a time, in the order of the roster.

A site may be asked again until the deadline, each time as a further attempt. What the network did to an order, or a site
that says "not now", costs it nothing; what went wrong at the site counts against ``federation.retries``. Only the answer
to the latest attempt is taken: what comes to an older one, or after the deadline, is dropped. A site that is revoked
meanwhile has refused.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from flwr.app import ArrayRecord, Message
from numpy.typing import NDArray

from fedmed_common import failpoints, wire
from fedmed_common.codecs import update_codec
from fedmed_common.errors import RejectedReply, RepliesLost, TransportAway, TransportLost
from fedmed_common.params import Parameters
from fedmed_common.secure import fixed_point
from fedmed_common.wire_arrays import packed
from fedmed_server import gate
from fedmed_server.agreement import Agreed, Sending
from fedmed_server.channel import Channel, Guarded, Member
from fedmed_server.history import SiteResult

_FINAL_CODES = frozenset({"policy", "config", "labels", "data"})
_UNDELIVERED = frozenset({"transport-3", "transport-4", "transport-5"})
"""Flower's errors for an order or a reply that is gone, and for a node that is."""
_PAUSE_TIMES, _LONGEST_LOOK_SECONDS = 2.0, 0.5
_FIRST_PAUSE_POLLS, _LONGEST_PAUSE_SECONDS = 4, 30.0
SPARE_SECONDS = 60.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Extras:
    """What a recipe adds to an exchange.

    ``down``: arrays that all sites are sent, ``down_to(site)``: that one is sent besides. ``sums``: arrays like those that a site
    answers with, together at most ``sums_limit(training patients)`` long; ``scalars``: its numbers, and between what they lie.
    ``private``: a statistic comes with noise. ``agreed``: how the parameters are sent to sites that have had the model before;
    None: as they are. ``secure(site)``: what its order says of a secure sum; ``masked``: how long
    the part of it is that a site answers with, in the place of its update and sums.
    """

    down: Parameters = field(default_factory=dict)
    down_to: Callable[[str], Parameters] = lambda _site: {}
    sums: Parameters = field(default_factory=dict)
    sums_limit: Callable[[int], float] = lambda _patients: math.inf
    scalars: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    private: bool = False
    agreed: Agreed | None = None
    secure: Callable[[str], str] | None = None
    masked: int = 0


NOTHING = Extras()


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One site's part in an exchange: the result to record and, where all went well, its reply."""

    member: Member
    result: SiteResult
    reply: wire.Reply | None


def exchange(
    channel: Channel,
    members: Sequence[Member],
    order: wire.Order,
    parameters: Parameters | None = None,
    extras: Extras = NOTHING,
) -> Iterator[Answer]:
    """Send the order to the members and yield their answers one at a time, in the given order of members.

    All work at once; an answer that comes early waits in Flower's store, so this side holds one update at a time, and sums of
    floats do not depend on who is fast. Let go of an answer before asking for the next.

    Raises:
        TransportLost: the network stayed away until the deadline, or the Flower run was ended.
    """
    return Exchange(channel, members, order, parameters or {}, extras).answers()


@dataclass(slots=True, kw_only=True)
class Part:
    """A member's part in an exchange. ``identifier``: the message that is out, ``due``: when to send the next one."""

    member: Member
    order: wire.Order
    identifier: str = ""
    sent: int = 0
    activated: str = ""
    due: float = 0.0
    bytes_down: int = 0
    failures: int = 0
    pauses: int = 0
    problem: SiteResult | None = None
    answer: Answer | None = None


class Exchange:
    """One order to many sites: ``exchange`` as an object, for those who take the answers in another order."""

    def __init__(
        self,
        channel: Channel,
        members: Sequence[Member],
        order: wire.Order,
        parameters: Parameters,
        extras: Extras,
    ) -> None:
        self._channel, self._grid, self._extras = channel, channel.grid, extras
        trains = order.kind is wire.Kind.TRAIN and not extras.masked
        self._template = channel.updated(parameters) if trains else None
        self._codec = update_codec(channel.experiment) if trains else None
        self._sending = Sending(parameters, extras.agreed, channel.has, self._packed)
        self._down: ArrayRecord | None = None
        self._seconds = channel.experiment.federation.deadline_seconds
        self._end = time.monotonic() + self._seconds
        self._ttl_seconds = self._seconds + SPARE_SECONDS
        self._private = extras.private or (
            order.kind is wire.Kind.TRAIN and channel.experiment.privacy is not None
        )
        self._connected: dict[int, str] = {}
        self._parts = [Part(member=member, order=order) for member in members]

    def answers(self) -> Iterator[Answer]:
        """See :func:`exchange`."""
        self.begin()
        waiting = list(self._parts)
        while waiting:
            part = waiting.pop(0)
            yield self._await(part, waiting)

    def begin(self) -> None:
        """Send the order to all."""
        self.guard()
        self._connected = self._channel.through(self._activated, self._end)
        for part in self._parts:
            if not self._is_revoked(part):
                self._channel.through(partial(self._send, part), self._end)

    def guard(self) -> None:
        """From now on a reply holds at most what this order asks for."""
        if isinstance(self._grid, Guarded):
            sent = self._template or {}
            forms = self._codec.forms(sent) if self._codec else sent
            arrays = (*forms.values(), *self._extras.sums.values())
            size = sum(array.nbytes for array in arrays) + fixed_point.BYTES * self._extras.masked
            most = (len(forms) if self._codec else 1) + bool(self._extras.sums) + bool(self._extras.masked)
            self._grid.set_limit(size, most)

    def _await(self, part: Part, later: Sequence[Part]) -> Answer:
        """The part's answer, to which nothing here refers any more: an update is as large as the model."""
        self._channel.watch(part.member.name, "awaited")
        while part.answer is None:
            self._look(part, later)
        return self._taken(part)

    def _taken(self, part: Part) -> Answer:
        """The part's answer, which is there, and is the part's no longer."""
        answer, part.answer = part.answer, None
        assert answer is not None  # noqa: S101
        self._channel.watch(answer.result.site, answer.result.outcome)
        result = answer.result.model_copy(update={"bytes_down": part.bytes_down})
        return replace(answer, result=result)

    def _look(self, turn: Part, later: Sequence[Part]) -> None:
        """See what has come; ask again whom it takes; where nothing has come for the one whose turn it is, wait."""
        self._channel.check_stop()
        if self._is_revoked(turn):
            return
        began = time.monotonic()
        over = began > self._end
        try:
            self._collect(turn, over)
            if turn.answer is None and not over:
                self._tend([turn, *(part for part in later if part.answer is None)])
        except TransportAway as away:
            self._bear(away, over)
        if turn.answer is None and over:
            self._give_up(turn)
        elif turn.answer is None:
            took = min(time.monotonic() - began, _LONGEST_LOOK_SECONDS)
            self._channel.pause(_PAUSE_TIMES * took)

    def _bear(self, away: TransportAway, over: bool) -> None:
        """The network is away: who may have answered meanwhile is asked again.

        Raises:
            TransportLost: it has been away for too long.
        """
        if over:
            raise TransportLost(str(away)) from None
        if isinstance(away, RepliesLost):
            for part in self._parts:
                if part.identifier in away.messages:
                    self._again(part, "its reply may be lost", pause=False)

    def _is_revoked(self, part: Part) -> bool:
        """Whether the consortium has shut the site out: its part ends, whatever is on its way."""
        if not self._channel.is_revoked(part.member.name):
            return False
        part.answer = Answer(member=part.member, result=self._blank(part, "refused", "revoked"), reply=None)
        return True

    def _tend(self, parts: Sequence[Part]) -> None:
        arrived, self._connected = self._arrived(parts), self._activated()
        for part in parts:
            if part.identifier in arrived and part is not parts[0]:
                if not arrived[part.identifier]:
                    self._collect(part, over=False)
            elif self._came_anew(part):
                self._again(part, "it connected anew", pause=part.pauses > 0)
            self._send_where_due(part)

    def _came_anew(self, part: Part) -> bool:
        """Whether the site has connected anew since it was asked: it may never have heard of the order."""
        now = self._connected.get(part.member.node)
        return bool(part.identifier) and now is not None and now != part.activated

    def _send_where_due(self, part: Part) -> None:
        connected = part.member.node in self._connected
        if part.answer is None and not part.identifier and connected and part.due <= time.monotonic():
            self._send(part)

    def _arrived(self, parts: Sequence[Part]) -> dict[str, bool]:
        """Whose answers are there, and whether they hold arrays: those without need not wait for their turn."""
        out = [part.identifier for part in parts if part.identifier]
        return self._grid.arrived(out) if out and isinstance(self._grid, Guarded) else {}

    def _activated(self) -> dict[int, str]:
        """By connected node: since when."""
        return {node.node_id: node.last_activated_at for node in self._grid.get_nodes()}

    def _send(self, part: Part) -> None:
        """Send the order, as a further attempt where it was sent before. Flower may not take it: then it is due again."""
        self._channel.check_stop()
        failpoints.reach("before-dispatch", round=part.order.round, site=part.member.name)
        if part.sent:
            part.order = replace(part.order, attempt=part.order.attempt + 1)
        if self._extras.secure is not None:
            part.order = replace(part.order, secure=self._extras.secure(part.member.name))
        if self._private or part.order.kind in {wire.Kind.FACTS, wire.Kind.EVALUATE}:
            part.order = replace(part.order, receipt=self._channel.receipts.of(part.member.name))
        part.activated = self._connected.get(part.member.node, "")
        model, base, arrays = self._sending.to(part.member.name)
        part.order = replace(part.order, model=model, base=base)
        content = wire.pack_order(part.order, arrays, self._down_to(part.member.name))
        part.bytes_down += wire.parameter_bytes(content)
        message = Message(
            content,
            part.member.node,
            part.order.kind.value,
            group_id=str(part.order.round),
            ttl=self._ttl_seconds,
        )
        identifiers = list(self._grid.push_messages([message]))
        part.sent += 1
        part.identifier = (identifiers[0] or "") if identifiers else ""
        self._channel.watch(part.member.name, "asked")
        if not part.identifier:
            part.problem = self._blank(part, "failed", "undeliverable")
            self._again(part, "Flower did not take the order", pause=True)

    def _down_to(self, site: str) -> ArrayRecord:
        """What goes to all sites, made ready once, and what goes to this one besides."""
        if self._down is None:
            self._down = self._packed(self._extras.down)
        own = self._packed(self._extras.down_to(site))
        return ArrayRecord({**self._down, **own}) if own else self._down

    def _packed(self, arrays: Mapping[str, NDArray[Any]]) -> ArrayRecord:
        record = packed(arrays)
        if not record:
            return record
        return self._grid.shelve(record) if isinstance(self._grid, Guarded) else record

    def _collect(self, part: Part, over: bool) -> None:
        if not part.identifier:
            return
        for message in self._grid.pull_messages([part.identifier]):
            if message.metadata.reply_to_message_id == part.identifier:
                self._weigh(part, *self._judge(part, message), over)
                return

    def _weigh(self, part: Part, reply: wire.Reply | None, result: SiteResult, over: bool) -> None:
        """Take the answer, or ask again."""
        waits = result.code in wire.WAITING_RULES or result.code in _UNDELIVERED
        fails = result.outcome in {"failed", "rejected"} and result.code not in _FINAL_CODES and not waits
        part.failures += fails
        tired = fails and (over or part.failures > self._channel.experiment.federation.retries)
        if tired or not (waits or fails):
            part.answer = Answer(member=part.member, result=result, reply=reply)
            return
        part.problem = result
        phase = result.code if waits else result.outcome
        self._channel.watch(part.member.name, "away" if phase in _UNDELIVERED else phase)
        self._again(part, f"{result.outcome}: {result.code}", pause=waits and result.code != wire.NO_BASE)

    def _again(self, part: Part, why: str, pause: bool) -> None:
        part.identifier = ""
        seconds = 0.0
        if pause:
            seconds = self._channel.poll_seconds * _FIRST_PAUSE_POLLS * 2.0 ** min(part.pauses, 20)
        part.pauses += 1
        part.due = time.monotonic() + min(seconds, _LONGEST_PAUSE_SECONDS)
        _log.info("%s is asked again (%s)", part.member.name, why)

    def _give_up(self, part: Part) -> None:
        """The deadline has passed: the site is late, or what kept it from being asked is why it is missed."""
        result = self._blank(part, "late", "deadline")
        if part.member.node not in self._connected:
            result = self._blank(part, "late", "not connected")
        elif not part.identifier and part.problem is not None:
            result = part.problem
        part.answer = Answer(member=part.member, result=result, reply=None)

    def _blank(self, part: Part, outcome: str = "ok", code: str = "") -> SiteResult:
        result = SiteResult(site=part.member.name, patients=_patients(part.member, part.order))
        return result.model_copy(update={"outcome": outcome, "code": code})

    def _judge(self, part: Part, message: Message) -> tuple[wire.Reply | None, SiteResult]:
        if message.has_error():
            code = message.error.code
            if code in gate.UNREAD:
                return None, self._blank(part, "rejected", gate.UNREAD[code])
            return None, self._blank(part, "failed", f"transport-{code}")
        size = wire.parameter_bytes(message.content)
        try:
            reply = gate.admit(message.content, self._expected(part))
            if reply.receipt is not None:
                self._channel.receipts.keep(reply.site, reply.receipt)
        except RejectedReply as error:
            return None, self._blank(part, "rejected", error.reason).model_copy(update={"bytes_up": size})
        self._sending.answered(part.member.name, reply)
        if reply.code:
            outcome = "refused" if reply.code == "policy" else "failed"
            about: dict[str, object] = {"site": reply.site, "incident": reply.incident, "bytes_up": size}
            return None, self._blank(part, outcome, reply.rule or reply.code).model_copy(update=about)
        metrics = {name: (mean.total, mean.weight) for name, mean in reply.metrics.items()}
        about = {"metrics": metrics, "seconds": reply.seconds, "bytes_up": size}
        if reply.epsilon_spent is not None:
            about["epsilon_spent"] = reply.epsilon_spent
        if reply.region is not None:
            region = reply.region
            about |= {"asked": region.asked, "missed": region.missed, "patients": region.patients}
        return reply, self._blank(part).model_copy(update=about)

    def _expected(self, part: Part) -> gate.Expected:
        order, task = part.order, self._channel.experiment.task
        unknown = order.kind is wire.Kind.FACTS
        return gate.Expected(
            site=None if unknown and self._channel.expected is None else part.member.name,
            run=order.run,
            round=order.round,
            attempt=order.attempt,
            kind=order.kind,
            classes=task.classes,
            metrics=gate.allowed_metrics(order.kind, task),
            patients=None if unknown else _patients(part.member, order),
            steps=self._channel.experiment.train.steps_of(_patients(part.member, order))
            * max(part.member.facts.sites, 1),
            template=self._template,
            codec=self._codec,
            sums=self._extras.sums,
            masked=self._extras.masked,
            sums_limit=self._extras.sums_limit(part.member.facts.patients.get("train", 0)),
            scalars=self._extras.scalars,
            norm_limit=self._channel.experiment.federation.update_norm_limit,
            private=self._private
            or (order.kind is wire.Kind.EVALUATE and part.member.facts.held_out == "noised"),
            sites=None if unknown and self._channel.regional else part.member.facts.sites,
        )


def _patients(member: Member, order: wire.Order) -> int:
    trains = order.kind in {wire.Kind.TRAIN, wire.Kind.STATISTICS, wire.Kind.SECURE}
    return member.facts.patients.get("train" if trains else order.split, 0)
