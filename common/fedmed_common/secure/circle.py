"""Who sums with whom: what all sites of a secure sum and the server have to agree on, and the messages between them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from dataclasses import dataclass
from typing import Annotated, Any, Self, TypeVar

from pydantic import Field, model_validator

from fedmed_common.errors import WireError
from fedmed_common.fields import Model

M = TypeVar("M", bound=Model)

Hex = Annotated[str, Field(pattern=r"^[0-9a-f]+$", max_length=20_000)]
Key = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Signature = Annotated[str, Field(pattern=r"^[0-9a-f]{128}$")]
Session = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
SiteName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.\-]{0,63}$")]
_MOST_SITES = 256


class Offer(Model):
    """A site's public keys for one sum: of its masks, of what it is sent under seal, and of what it signs in the sum's course
    (Ed25519). ``patients``: whom it trains on.

    ``seed_mark``: the hash of the seed of its own mask, by which it is known whether shares gave the right one. ``signature``: of
    the site's certified key over :meth:`signed`, with its ``certificate``; both empty where sites have none, as in a simulation.
    """

    site: SiteName
    mask_key: Key
    seal_key: Key
    sign_key: Key
    seed_mark: Key
    patients: Annotated[int, Field(ge=0, le=10_000_000)]
    certificate: Annotated[str, Field(max_length=10_000)] = ""
    signature: Annotated[str, Field(pattern=r"^[0-9a-f]*$", max_length=1000)] = ""

    def signed(self, run: str, session: str) -> bytes:
        """What the signature is over."""
        keys = self.model_dump(exclude={"certificate", "signature"}, mode="json")
        return _bytes(["offer", run, session, keys])


def mark_of(seed: bytes) -> str:
    """The hash of a seed. It tells nothing of one that is drawn from 2^256."""
    return hashlib.sha256(b"seed" + seed).hexdigest()


class Circle(Model):
    """The sites of one sum in the order of their names, and how many of them can open it together.

    ``threshold``: of so many shares a secret can be put together; ``colluding``: so many sites together with the server learn
    nothing. It is all in the keys that sites agree on, so that two who were told different things have masks that do not cancel.
    """

    run: Annotated[str, Field(max_length=200)]
    round: Annotated[int, Field(ge=0)]
    session: Session
    threshold: Annotated[int, Field(ge=2, le=_MOST_SITES)]
    colluding: Annotated[int, Field(ge=0, le=_MOST_SITES)] = 0
    offers: Annotated[tuple[Offer, ...], Field(min_length=2, max_length=_MOST_SITES)]

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        names = list(self.names)
        if names != sorted(set(names)):
            raise ValueError("sites twice, or not in the order of their names")
        keys = [key for offer in self.offers for key in (offer.mask_key, offer.seal_key, offer.sign_key)]
        if len(set(keys)) != len(keys):
            raise ValueError("a key twice")
        if self.threshold > len(names):
            raise ValueError("a threshold that cannot be reached")
        if 2 * self.threshold <= len(names) + self.colluding:
            raise ValueError(
                f"a threshold of {self.threshold} of {len(names)} with {self.colluding} that collude: two groups of sites "
                "could be asked for the two halves of a site's secrets"
            )
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """Of the sites."""
        return tuple(offer.site for offer in self.offers)

    def number(self, site: str) -> int:
        """Of a site's shares, from 1 on."""
        return self.names.index(site) + 1

    def offer(self, site: str) -> Offer:
        """The site's own."""
        return self.offers[self.names.index(site)]

    def digest(self, *about: object) -> bytes:
        """Of all of it, and what else the parties have to agree on."""
        return hashlib.sha256(_bytes([self.model_dump(mode="json"), *about])).digest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Party:
    """Who takes part in a sum: those of the circle who have sealed their shares, in the order of their names."""

    circle: Circle
    names: tuple[str, ...]

    @property
    def honest(self) -> int:
        """So many sites stay at least, and keep to themselves what they added."""
        return self.circle.threshold - self.circle.colluding

    @property
    def patients(self) -> dict[str, int]:
        """By site."""
        return {name: self.circle.offer(name).patients for name in self.names}

    def context(self, *about: object) -> bytes:
        """What goes into every mask: the circle, who takes part, and what is summed."""
        return self.circle.digest(list(self.names), *about)

    def masked(self, statistic: str) -> bytes:
        """What a site signs with its vector: with whom it was masked, and for what."""
        return self.circle.digest(list(self.names), "masked", statistic)

    def survived(self, statistic: str, survivors: Collection[str]) -> bytes:
        """What a site signs before it opens anything: over whom the sum is."""
        return self.circle.digest(list(self.names), "survived", statistic, sorted(survivors))


def threshold_of(sites: int, dropouts: int | None, colluding: int) -> int:
    """How many sites of a circle must stay, for so many dropouts; None: as many dropouts as can be.

    Two groups that could each open one half of a site's secrets have to have an honest site in common, which answers one of them:
    2 t > n + c.

    Raises:
        ValueError: with so many dropouts and colluding sites that cannot be.
    """
    least = (sites + colluding) // 2 + 1
    threshold = least if dropouts is None else sites - dropouts
    if not max(2, least) <= threshold <= sites:
        raise ValueError(
            f"of {sites} sites {sites - threshold} may drop out while {colluding} collude: at least {max(2, least)} have to stay"
        )
    return max(2, threshold)


class Wanted(Model):
    """What an order asks for of a secure sum: with nothing else, a site's keys; with a circle, its shares for the others; with
    ``shares`` to it, the masked vector of what the order's work gives; with ``survivors``, that it agrees on the sum over them;
    with what others have ``agreed`` on, what opens it.

    ``shares``: by sender, sealed for this site; ``marks``: by survivor its signature of whom it has masked its vector with;
    ``agreed``: by site its signature of the survivors.
    """

    session: Session
    circle: Circle | None = None
    shares: dict[SiteName, Hex] | None = None
    survivors: tuple[SiteName, ...] | None = None
    marks: dict[SiteName, Signature] | None = None
    agreed: dict[SiteName, Signature] | None = None

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        if self.circle is None and (self.shares is not None or self.survivors is not None):
            raise ValueError("without a circle")
        if self.circle is not None and self.circle.session != self.session:
            raise ValueError("another session's circle")
        if self.survivors is not None and self.shares is None:
            raise ValueError("survivors without shares")
        if (self.survivors is None) != (self.marks is None and self.agreed is None):
            raise ValueError("survivors, and nobody's word for them")
        return self


class Given(Model):
    """A site's answer: its ``offer``; or by receiver the ``sealed`` shares; or its ``mark``, with its vector; or its word on the
    survivors, that it ``agreed``; or by site the ``opened`` shares, each of one half of that site's secrets."""

    offer: Offer | None = None
    sealed: dict[SiteName, Hex] | None = None
    mark: Signature | None = None
    agreed: Signature | None = None
    opened: dict[SiteName, Key] | None = None


def to_text(message: Wanted | Given) -> str:
    """A message as it crosses the wire."""
    return message.model_dump_json(exclude_none=True)


def wanted(text: str) -> Wanted:
    """What an order asks for.

    Raises:
        WireError: it is no such message.
    """
    return _read(Wanted, text)


def given(text: str) -> Given:
    """What a reply gives.

    Raises:
        WireError: it is no such message.
    """
    return _read(Given, text)


def _read(kind: type[M], text: str) -> M:
    try:
        return kind.model_validate_json(text)
    except ValueError:
        raise WireError("secure aggregation") from None


def _bytes(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
