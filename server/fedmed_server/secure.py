"""The server's part in a secure sum: it carries messages between sites, adds what it cannot read, and opens the sum alone.

Four further exchanges of small messages go with each round: of keys, of sealed shares, of what the sum is over, and of what opens
it. What was agreed is in the run's folder before sites train on it, so that a run that goes on after a crash asks for the same,
and gets what sites have sealed meanwhile.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations, islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedmed_common import params, wire
from fedmed_common.errors import QuorumError, WireError
from fedmed_common.files import write_atomically
from fedmed_common.params import Parameters
from fedmed_common.secure import circle as messages
from fedmed_common.secure import masks, shares
from fedmed_common.secure.circle import Circle, Given, Offer, Party, Wanted, mark_of, threshold_of
from fedmed_common.secure.fixed_point import Layout
from fedmed_common.secure.signatures import is_said, is_signed
from fedmed_server.channel import Channel, Member
from fedmed_server.exchange import Answer, Extras, exchange
from fedmed_server.history import SiteResult

FILE = "secure.json"
_MOST_TRIES = 1000


@dataclass(slots=True)
class SecureSum:
    """One sum. ``order``: what sites do for it, whose experiment has ``[secure_aggregation]``."""

    channel: Channel
    order: wire.Order
    party: Party | None = None
    lost: list[SiteResult] = field(default_factory=list)
    _sealed: dict[str, dict[str, str]] = field(default_factory=dict)
    _survivors: tuple[str, ...] | None = None
    _total: NDArray[np.uint32] | None = None
    _marks: dict[str, str] = field(default_factory=dict)

    def agree(self, members: Sequence[Member]) -> list[Member]:
        """Who takes part: those of the members who gave keys and shares. Those who did not are ``lost``.

        Raises:
            QuorumError: too few did.
        """
        if not self._known(members):
            self._begin(members)
        assert self.party is not None  # noqa: S101
        return [member for member in members if member.name in self.party.names]

    def wanted(self, site: str) -> str:
        """What a site's order says of the sum."""
        return messages.to_text(self._wanted(site))

    def take(self, answer: Answer) -> Answer:
        """Add the masked vector of a site's answer, modulo 2^32. The answer; without a reply where the site has not signed with
        whom its vector was masked. Of a sum that was opened before the others are left out."""
        if answer.reply is None or answer.reply.masked is None:
            return answer
        site, mark = answer.member.name, _given(answer.reply).mark
        if mark is None or not is_said(
            self._party.circle.offer(site), self._party.masked(self.order.statistic), mark
        ):
            return replace(answer, reply=None, result=_rejected(answer.result))
        if self._survivors is None or site in self._survivors:
            self._marks[site] = mark
            if self._total is None:
                self._total = np.zeros_like(answer.reply.masked)
            self._total += answer.reply.masked
        return answer

    def open(self, members: Sequence[Member], layout: Layout) -> dict[str, NDArray[np.float64]]:
        """The sum over those whose vectors were added, by the names of the layout's blocks.

        Raises:
            QuorumError: too few are left, or too few help to open it.
        """
        party, survivors = self._party, tuple(sorted(self._marks))
        if self._survivors not in (None, survivors):
            self._forget()
            raise QuorumError(
                f"{self._what}: sites whose sum was to be opened did not answer again; it has to be begun anew\n"
                "  fix: 'fedmed resume' does that"
            )
        if len(survivors) < party.circle.threshold:
            raise QuorumError(
                f"{self._what}: {len(survivors)} of {len(party.names)} sites are in the secure sum; "
                f"{party.circle.threshold} have to be (secure_aggregation.dropouts)"
            )
        self._survivors = survivors
        self._save()
        opened = self._gathered(members, survivors)
        context = party.context(self.order.kind.value, self.order.statistic, layout.described())
        assert self._total is not None  # noqa: S101
        try:
            unmask(self._total, party, survivors, opened, context)
        except ValueError as problem:
            self._forget()
            raise QuorumError(
                f"{self._what}: {problem}\n"
                "  fix: 'fedmed resume' begins the sum anew; leave a site out that gives wrong shares again"
            ) from None
        return layout.decode(self._total)

    def check(self, step: Parameters, limit: float) -> None:
        """Refuse what a sum of updates within the limit cannot be: nobody sees the single ones.

        Raises:
            QuorumError: it is longer, or not finite.
        """
        if not params.norm(step) <= limit:
            self._forget()
            raise QuorumError(
                f"{self._what}: the secure sum is longer than federation.update_norm_limit ({limit:g}): some site's part was no "
                "update\n  fix: 'fedmed resume' begins the sum anew; who it was cannot be seen"
            )

    @property
    def _party(self) -> Party:
        assert self.party is not None  # noqa: S101
        return self.party

    @property
    def _what(self) -> str:
        statistic = f" (statistic '{self.order.statistic}')" if self.order.statistic else ""
        return f"round {self.order.round}{statistic}"

    def _begin(self, members: Sequence[Member]) -> None:
        settings = self.channel.experiment.secure_aggregation
        assert settings is not None  # noqa: S101
        session = secrets.token_hex(16)
        offers, keys = {}, set[str]()
        for member, given in self._ask(
            members,
            lambda _site: Wanted(session=session),
            lambda member, given: (
                given.offer is not None
                and _is_new(member, given.offer, keys)
                and _is_vouched_for(given.offer, self.order.run, session)
            ),
        ):
            offers[member.name] = given.offer
        try:
            circle = Circle(
                run=self.order.run,
                round=self.order.round,
                session=session,
                threshold=threshold_of(len(offers), settings.dropouts, settings.colluding),
                colluding=settings.colluding,
                offers=tuple(offer for name in sorted(offers) if (offer := offers[name]) is not None),
            )
        except ValueError as problem:
            raise QuorumError(
                f"{self._what}: no secure sum: {_first_line(problem)}{self._reasons()}"
            ) from None
        asked = [member for member in members if member.name in offers]
        self._sealed = {
            member.name: given.sealed or {}
            for member, given in self._ask(
                asked,
                lambda _site: Wanted(session=session, circle=circle),
                lambda member, given: (
                    given.sealed is not None and {*given.sealed, member.name} == set(circle.names)
                ),
            )
        }
        if len(self._sealed) < circle.threshold:
            raise QuorumError(
                f"{self._what}: {len(self._sealed)} of {len(circle.names)} sites gave shares for a secure sum, "
                f"{circle.threshold} have to{self._reasons()}"
            )
        self.party = Party(circle=circle, names=tuple(sorted(self._sealed)))
        self._save()

    def _ask(
        self,
        members: Sequence[Member],
        wanted: Callable[[str], Wanted],
        is_right: Callable[[Member, Given], bool],
    ) -> list[tuple[Member, Given]]:
        """Small messages to and from the members; who does not answer, or not as asked, is lost."""
        order = replace(self.order, kind=wire.Kind.SECURE)
        found = []
        extras = Extras(secure=lambda site: messages.to_text(wanted(site)))
        for answer in exchange(self.channel, members, order, extras=extras):
            if answer.reply is None:
                self.lost.append(answer.result)
                continue
            given = _given(answer.reply)
            if is_right(answer.member, given):
                found.append((answer.member, given))
            else:
                self.lost.append(_rejected(answer.result))
        return found

    def _wanted(self, site: str, survivors: tuple[str, ...] | None = None, **words: dict[str, str]) -> Wanted:
        received = {sender: sealed[site] for sender, sealed in self._sealed.items() if sender != site}
        return Wanted(
            session=self._party.circle.session,
            circle=self._party.circle,
            shares=received,
            survivors=survivors,
            **words,
        )

    def _gathered(self, members: Sequence[Member], survivors: tuple[str, ...]) -> dict[str, dict[int, bytes]]:
        """By site the shares of one of its secrets, by their numbers."""
        party, before = self._party, len(self.lost)
        message = party.survived(self.order.statistic, survivors)
        agreed = self._ask(
            [member for member in members if member.name in party.names],
            lambda site: self._wanted(site, survivors, marks=self._marks),
            lambda member, given: is_said(party.circle.offer(member.name), message, given.agreed),
        )
        self._check_enough(len(agreed), "agree on who is in the secure sum", before)
        words = {member.name: given.agreed or "" for member, given in agreed}
        answers = self._ask(
            [member for member, _ in agreed],
            lambda site: self._wanted(site, survivors, agreed=words),
            lambda _member, given: given.opened is not None and set(given.opened) <= set(party.names),
        )
        self._check_enough(len(answers), "help to open the secure sum", before)
        del self.lost[before:]
        opened: dict[str, dict[int, bytes]] = {name: {} for name in party.names}
        for member, given in answers:
            for name, share in (given.opened or {}).items():
                opened[name][party.circle.number(member.name)] = bytes.fromhex(share)
        return opened

    def _check_enough(self, count: int, what: str, before: int) -> None:
        if count < self._party.circle.threshold:
            raise QuorumError(
                f"{self._what}: {count} sites {what}; {self._party.circle.threshold} have to{self._reasons(before)}"
            )

    def _reasons(self, first: int = 0) -> str:
        problems = "; ".join(result.problem() for result in self.lost[first:])
        return f". {problems}" if problems else ""

    def _known(self, members: Sequence[Member]) -> bool:
        """Take up what was agreed on before a crash, for the same work of the same sites."""
        file = self._file
        if file is None or not file.exists():
            return False
        try:
            document = json.loads(file.read_bytes())
            circle = Circle.model_validate(document["circle"])
            if document["for"] != self._purpose() or not set(circle.names) <= {m.name for m in members}:
                return False
            self._sealed = document["sealed"]
            self._survivors = tuple(document["survivors"]) if document["survivors"] is not None else None
        except (ValueError, KeyError, TypeError):
            return False
        self.party = Party(circle=circle, names=tuple(sorted(self._sealed)))
        for member in members:
            if member.name not in self.party.names:
                missing = SiteResult(site=member.name, patients=member.facts.patients.get("train", 0))
                self.lost.append(missing.model_copy(update={"outcome": "late", "code": "deadline"}))
        return True

    def _save(self) -> None:
        if self._file is None:
            return
        document = {
            "for": self._purpose(),
            "circle": self._party.circle.model_dump(mode="json"),
            "sealed": self._sealed,
            "survivors": self._survivors,
        }
        write_atomically(self._file, json.dumps(document).encode())

    def _forget(self) -> None:
        if self._file is not None:
            self._file.unlink(missing_ok=True)

    def _purpose(self) -> list[object]:
        return [self.order.kind.value, self.order.run, self.order.round, self.order.statistic]

    @property
    def _file(self) -> Path | None:
        return None if self.channel.folder is None else self.channel.folder / FILE


def _given(reply: wire.Reply) -> Given:
    """What the reply says of the sum; nothing, where that is no message."""
    try:
        return messages.given(reply.secure)
    except WireError:
        return Given()


def _rejected(result: SiteResult) -> SiteResult:
    return result.model_copy(update={"outcome": "rejected", "code": "secure aggregation"})


def _is_vouched_for(offer: Offer, run: str, session: str) -> bool:
    """Sites that have certificates refuse a circle with keys that are not signed; who issued them is theirs to check."""
    return not (offer.certificate or offer.signature) or is_signed(offer, run, session)


def _is_new(member: Member, offer: Offer, known: set[str]) -> bool:
    """Whether it is the member's own offer, with keys that no other has; ``known`` has them from then on."""
    if offer.site != member.name:
        return False
    if not all(masks.is_public(bytes.fromhex(key)) for key in (offer.mask_key, offer.seal_key)):
        return False
    own = {offer.mask_key, offer.seal_key, offer.sign_key}
    if len(own) < 3 or own & known or offer.patients > member.facts.patients.get("train", 0):
        return False
    known |= own
    return True


def unmask(
    total: NDArray[np.uint32],
    party: Party,
    survivors: Collection[str],
    opened: Mapping[str, Mapping[int, bytes]],
    context: bytes,
) -> None:
    """Take the masks off the survivors' sum, in place.

    ``opened``: by site the shares of its seed, if it survived, or else of its key, by their numbers.

    Raises:
        ValueError: they are not what the site has announced.
    """
    for name in party.names:
        secret = _secret(party, name, opened[name], survived=name in survivors)
        if name in survivors:
            masks.add_mask(total, masks.derived(secret, b"self" + context), -1)
            continue
        for other in survivors:
            public = bytes.fromhex(party.circle.offer(other).mask_key)
            masks.add_mask(total, masks.agreed(secret, public, b"pair" + context), -1 if other < name else 1)


def _secret(party: Party, name: str, found: Mapping[int, bytes], *, survived: bool) -> bytes:
    """The site's seed or key, of shares some of which may be wrong: of the first set that gives what was announced."""
    offer, least = party.circle.offer(name), party.circle.threshold
    if len(found) < least:
        raise ValueError(f"{len(found)} sites could open what '{name}' had sealed for them; {least} have to")
    for numbers in islice(combinations(found, least), _MOST_TRIES):
        secret = shares.combine({number: found[number] for number in numbers})
        if survived and mark_of(secret) == offer.seed_mark:
            return secret
        if not survived and masks.public_of(secret).hex() == offer.mask_key:
            return secret
    raise ValueError(f"the shares of '{name}' do not open the secure sum: some site's are wrong")


def _first_line(problem: Exception) -> str:
    errors = getattr(problem, "errors", None)
    if callable(errors):
        return str(errors()[0]["msg"]).removeprefix("Value error, ")
    return str(problem)
