"""Orders that stay out while the server goes on: those of one version of the model, whose answers are taken as they come."""

from __future__ import annotations

import time
from collections.abc import Sequence

from fedmed_common import wire
from fedmed_common.errors import TransportAway
from fedmed_common.params import Parameters
from fedmed_server.agreement import Sending
from fedmed_server.channel import Channel, Guarded, Member
from fedmed_server.exchange import SPARE_SECONDS, Answer, Exchange, Extras, Part
from fedmed_server.history import SiteResult

STALE = "stale"
"""The code of an update that is older than is used."""
_FOR_EVER_SECONDS = 1e9


class Standing(Exchange):
    """An exchange that lasts for several rounds.

    A deployed site has ``federation.deadline_seconds`` for its answer, which the server may fetch later than that: it also
    measures models meanwhile. A simulated site has them from the moment on at which its answer is waited for. Between two looks
    the parameters are kept once.
    """

    def __init__(
        self,
        channel: Channel,
        members: Sequence[Member],
        order: wire.Order,
        parameters: Parameters,
        extras: Extras,
    ) -> None:
        super().__init__(channel, members, order, parameters, extras)
        self._is_let_go = False
        simulated = channel.expected is None
        self._ttl_seconds = _FOR_EVER_SECONDS if simulated else 2 * self._seconds + SPARE_SECONDS

    def begin(self) -> None:
        """Send the order to all."""
        super().begin()
        self._sending.forget()

    def guard(self) -> None:
        """From now on a reply holds at most what this order asks for, unless it was let go."""
        if not self._is_let_go:
            super().guard()

    def of(self, site: str) -> Answer:
        """The site's answer, waited for."""
        (part,) = (part for part in self._parts if part.member.name == site)
        self._end = time.monotonic() + self._seconds
        return self._out(part, self._await(part, ()))

    def first(self) -> Answer | None:
        """One look: the first answer that is there, or that can come no more; None where there is neither.

        Raises:
            TransportLost: the network stayed away until the deadline, or the Flower run was ended.
        """
        over = time.monotonic() > self._end
        try:
            arrived, self._connected = self._arrived(self._parts), self._activated()
            for part in self._parts:
                if self._is_let_go:
                    self._leave(part, part.identifier in arrived, over)
                else:
                    self._see(part, part.identifier in arrived, over)
                if part.answer is not None:
                    return self._out(part, self._taken(part))
        except TransportAway as away:
            self._bear(away, over)
        self._sending.forget()
        return None

    def let_go(self) -> None:
        """Nothing of these orders is used any more: none is sent again, and what comes is dropped."""
        self._is_let_go, self._template = True, None
        self._sending = Sending({}, None, {})

    def _see(self, part: Part, has_come: bool, over: bool) -> None:
        if self._is_revoked(part):
            return
        if has_come or not isinstance(self._grid, Guarded):
            self._collect(part, over)
        if part.answer is None and over:
            self._give_up(part)
        elif part.answer is None:
            if self._came_anew(part):
                self._again(part, "it connected anew", pause=part.pauses > 0)
            self._send_where_due(part)

    def _leave(self, part: Part, has_come: bool, over: bool) -> None:
        """Take note that the site is free: it has answered, or was lost on the way."""
        if has_come or not isinstance(self._grid, Guarded):
            has_come = bool(list(self._grid.pull_messages([part.identifier])))
        if has_come or over or not part.identifier or self._came_anew(part):
            part.answer = Answer(member=part.member, result=stale(part.member), reply=None)

    def _out(self, part: Part, answer: Answer) -> Answer:
        self._parts = [other for other in self._parts if other is not part]
        self._sending.forget()
        return answer


def stale(member: Member) -> SiteResult:
    """The result of an order that became too old."""
    return SiteResult(
        site=member.name, outcome="late", code=STALE, patients=member.facts.patients.get("train", 0)
    )
