"""A site's part in a secure sum: its keys, its shares for the others, its masked vector, and what opens the sum.

What a site must not forget or do twice lies in a file of its home, ``secure/<run>/<session>.json``, written before anything of
it leaves: asked again, it gives the same. The file of an older session of the run is deleted with its secrets, and its name kept:
no session begins twice.

The server may lie. It is the one way by which sites hear of each other, so that each signs its keys with its certified key
where it has one. With its vector a site signs with whom it was masked, and before anything is opened over whom the sum is, once
in a session; it opens only what each survivor has masked with the same sites, and as many sites as the threshold have signed
(Bonawitz et al. 2017, section 6.1 and figure 4, round 3). With a threshold over half the sites there is then one sum, over as
many sites at least, and no server can get both halves of a site's secrets. How many sites have to be in a sum, and how much of
it may be the site's own, its policy says.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from numpy.typing import NDArray

from fedmed_client.site.home import SiteFolder
from fedmed_common import identity
from fedmed_common.errors import PolicyRefusal
from fedmed_common.files import keep_newest, name_of, write_atomically
from fedmed_common.secure import masks, shares
from fedmed_common.secure.circle import Circle, Given, Offer, Party, Wanted, mark_of, threshold_of, to_text
from fedmed_common.secure.fixed_point import Layout
from fedmed_common.secure.signatures import is_said, is_signed, sign, sign_key_of, signed
from fedmed_common.site_config import Policy
from fedmed_common.training_config import SecureAggregation

RULE = "secure_session"
"""The rule by which a site refuses what would tell more than a sum."""
_SESSIONS, _RUNS, _NONCE = 2, 16, 12
_HALVES = ("seed", "mask_key")
_ENDED = "ended"
_OTHER_PARTIES = "other sites took part in this session before"


@dataclass(frozen=True)
class Sum:
    """One session of a run at this site. ``patients``: whom the site trains on; ``about``: what is summed, as a word or two."""

    folder: Path
    site: str
    run: str
    session: str
    patients: int
    policy: Policy
    settings: SecureAggregation
    about: tuple[str, ...]

    def answer(self, wanted: Wanted) -> Given:
        """The keys, the shares for the others, the word on who is in the sum, or what opens it: all but the vector.

        Raises:
            PolicyRefusal: ``secure_session``, ``least_sites`` or ``maximum_share``.
        """
        if wanted.circle is None:
            return Given(offer=self._offer())
        self._join(wanted.circle)
        if wanted.survivors is None:
            return Given(sealed=self._sealed(wanted.circle))
        party = self._party(wanted.circle, wanted.shares or {})
        if wanted.agreed is None:
            return Given(agreed=self._agreed(party, wanted.survivors, wanted.marks or {}))
        return Given(opened=self._opened(party, wanted.shares or {}, wanted.survivors, wanted.agreed))

    def mask(
        self, party: Party, layout: Layout, arrays: Mapping[str, NDArray[np.float64]]
    ) -> NDArray[np.uint32]:
        """The arrays as one vector under the masks of all who take part, modulo 2^32: uniform to whoever lacks one of them.

        Raises:
            PolicyRefusal: ``secure_range``; ``secure_session``, where another vector was masked in this session.
        """
        circle, parties, vector = party.circle, list(party.names), layout.encode(arrays)
        context = party.context(*self.about, layout.described())
        asked = [hashlib.sha256(vector.data).hexdigest(), context.hex()]
        state = self._once(
            parties=(parties, _OTHER_PARTIES), masked=(asked, "another vector was masked in this session")
        )
        result = vector.copy()
        masks.add_mask(result, masks.derived(bytes.fromhex(state["seed"]), b"self" + context), 1)
        for other in parties:
            if other != self.site:
                key = masks.agreed(
                    bytes.fromhex(state["mask_key"]), _key(circle, other, "mask_key"), b"pair" + context
                )
                masks.add_mask(result, key, 1 if self.site < other else -1)
        return result

    def taking_part(self, wanted: Wanted) -> Party:
        """Who takes part: this site, and those whose shares it was sent.

        Raises:
            PolicyRefusal: ``secure_session``, where the order has none of that, or too few take part.
        """
        circle, received = wanted.circle, wanted.shares
        if circle is None or received is None or wanted.survivors is not None:
            raise PolicyRefusal(RULE, "the order asks for a masked vector and says with whom not")
        self._join(circle)
        return self._party(circle, received)

    def mark(self, party: Party) -> Given:
        """What goes with the masked vector: the site's signature of whom it was masked with."""
        return Given(mark=sign(self._secret("sign_key"), party.masked(self.about[-1])))

    def _party(self, circle: Circle, received: Mapping[str, str]) -> Party:
        names = {*received, self.site}
        self._check_parties(names, circle)
        return Party(circle=circle, names=tuple(sorted(names)))

    def _once(self, **said: tuple[object, str]) -> dict[str, Any]:
        """Keep what is said once in a session, each with why another is refused; what is kept then."""
        state = self._state()
        for name, (value, problem) in said.items():
            if state.setdefault(name, value) != value:
                raise PolicyRefusal(RULE, problem)
        self._keep(state)
        return state

    def _secret(self, name: str) -> bytes:
        return bytes.fromhex(self._state()[name])

    def _offer(self) -> Offer:
        state = self._state()
        offer = Offer(
            site=self.site,
            mask_key=masks.public_of(bytes.fromhex(state["mask_key"])).hex(),
            seal_key=masks.public_of(bytes.fromhex(state["seal_key"])).hex(),
            sign_key=sign_key_of(bytes.fromhex(state["sign_key"])),
            seed_mark=mark_of(bytes.fromhex(state["seed"])),
            patients=self.patients,
        )
        home = SiteFolder(self.folder)
        if not home.certificate_file.exists():
            return offer
        return signed(offer, self.run, self.session, home.key(), home.certificate())

    def _join(self, circle: Circle) -> None:
        """Agree on the circle: the first of a session that is in order is the only one."""
        state = self._state()
        digest = circle.digest().hex()
        if state.get("circle") == digest:
            return
        if "circle" in state:
            raise PolicyRefusal(RULE, "the session has another circle")
        if circle.run != self.run or circle.session != self.session or self.site not in circle.names:
            raise PolicyRefusal(RULE, "the circle is not of this session, or without this site")
        own = circle.offer(self.site)
        mine = self._offer()
        if own.signed(self.run, self.session) != mine.signed(self.run, self.session):
            raise PolicyRefusal(RULE, "the circle has other keys or patients of this site")
        try:
            least = threshold_of(len(circle.names), self.settings.dropouts, self.settings.colluding)
        except ValueError as problem:
            raise PolicyRefusal(RULE, str(problem)) from None
        if circle.threshold < least or circle.colluding != self.settings.colluding:
            raise PolicyRefusal(RULE, f"fewer could open the sum than the experiment says ({least})")
        self._check_parties(set(circle.names), circle)
        for offer in circle.offers:
            if offer.site != self.site:
                self._check_signature(offer)
        self._keep(state | {"circle": digest})

    def _check_parties(self, parties: set[str], circle: Circle) -> None:
        """Enough of them, and none of them most of the sum."""
        if not parties <= set(circle.names):
            raise PolicyRefusal(RULE, "somebody takes part who is not in the circle")
        if len(parties) < circle.threshold:
            raise PolicyRefusal(RULE, f"{len(parties)} sites take part; {circle.threshold} have to")
        if len(parties) < self.policy.least_sites:
            raise PolicyRefusal("least_sites", f"{len(parties)} sites; at least {self.policy.least_sites}")
        patients = sum(circle.offer(name).patients for name in parties)
        share = self.patients / patients if self.site in parties and patients else 0.0
        if share > self.policy.maximum_share:
            raise PolicyRefusal(
                "maximum_share",
                f"{share:.0%} of the sum's patients are here; {self.policy.maximum_share:.0%} at most",
            )

    def _check_signature(self, offer: Offer) -> None:
        """Where this site has a certificate, so has each of the others, and its keys are signed with it."""
        home = SiteFolder(self.folder)
        if not home.authority_file.exists():
            return
        if not is_signed(offer, self.run, self.session, identity.load_certificate(home.authority_file)):
            raise PolicyRefusal(RULE, f"the keys of '{offer.site}' are not signed with its certificate")

    def _sealed(self, circle: Circle) -> dict[str, str]:
        """By receiver its shares of this site's seed and key, encrypted for it alone; its own share stays."""
        state = self._state()
        if "sealed" not in state:
            secrets_ = [bytes.fromhex(state[name]) for name in _HALVES]
            split = [shares.split(secret, circle.threshold, len(circle.names)) for secret in secrets_]
            parts = {name: b"".join(half[circle.number(name) - 1] for half in split) for name in circle.names}
            state["own"] = parts.pop(self.site).hex()
            state["sealed"] = {name: self._seal(state, circle, name, part) for name, part in parts.items()}
            self._keep(state)
        sealed: dict[str, str] = state["sealed"]
        return sealed

    def _agreed(self, party: Party, survivors: tuple[str, ...], marks: Mapping[str, str]) -> str:
        """The site's word that the sum is over these, each of whom has masked with the same sites; once in a session."""
        for name in set(survivors) & set(party.names):
            if not is_said(party.circle.offer(name), party.masked(self.about[-1]), marks.get(name)):
                raise PolicyRefusal(RULE, f"'{name}' has not said that it took part with these sites")
        self._settle(party, survivors)
        return sign(self._secret("sign_key"), party.survived(self.about[-1], survivors))

    def _settle(self, party: Party, survivors: tuple[str, ...]) -> None:
        self._check_parties(set(survivors), party.circle)
        if not set(survivors) <= set(party.names):
            raise PolicyRefusal(RULE, "a survivor did not take part")
        state = self._state()
        if "own" not in state:
            raise PolicyRefusal(RULE, "this site has sealed no shares in this session")
        if self.site in survivors and "masked" not in state:
            raise PolicyRefusal(RULE, "this site has given no vector in this session")
        self._once(
            parties=(list(party.names), _OTHER_PARTIES),
            opened=(sorted(survivors), "the sum over other sites was opened in this session"),
        )

    def _opened(
        self,
        party: Party,
        received: Mapping[str, str],
        survivors: tuple[str, ...],
        agreed: Mapping[str, str],
    ) -> dict[str, str]:
        """By site one half of its shares: of a survivor the seed of its own mask, of another the key of its masks with others.
        Without those of a site that sealed something else for this one."""
        self._settle(party, survivors)
        circle, message = party.circle, party.survived(self.about[-1], survivors)
        those = [name for name in party.names if is_said(circle.offer(name), message, agreed.get(name))]
        if len(those) < circle.threshold:
            raise PolicyRefusal(
                RULE, f"{len(those)} sites have agreed on this sum; {circle.threshold} have to"
            )
        state, opened = self._state(), {}
        for name in party.names:
            own = name == self.site
            both = bytes.fromhex(state["own"]) if own else self._unseal(state, circle, name, received[name])
            if both is None:
                continue
            half = both[: shares.SECRET_BYTES] if name in survivors else both[shares.SECRET_BYTES :]
            opened[name] = half.hex()
        return opened

    def _seal(self, state: Mapping[str, Any], circle: Circle, receiver: str, part: bytes) -> str:
        nonce = secrets.token_bytes(_NONCE)
        return (nonce + self._box(state, circle, self.site, receiver).encrypt(nonce, part, None)).hex()

    def _unseal(self, state: Mapping[str, Any], circle: Circle, sender: str, sealed: str) -> bytes | None:
        """What the sender sealed for this site; None where that is no pair of shares."""
        try:
            content = bytes.fromhex(sealed)
            box = self._box(state, circle, sender, self.site)
            part = box.decrypt(content[:_NONCE], content[_NONCE:], None)
        except (InvalidTag, ValueError):
            return None
        return part if len(part) == 2 * shares.SECRET_BYTES else None

    def _box(self, state: Mapping[str, Any], circle: Circle, sender: str, receiver: str) -> ChaCha20Poly1305:
        other = receiver if sender == self.site else sender
        purpose = b"seal" + circle.digest(sender, receiver)
        return ChaCha20Poly1305(
            masks.agreed(bytes.fromhex(state["seal_key"]), _key(circle, other, "seal_key"), purpose)
        )

    @property
    def _file(self) -> Path:
        return self.folder / "secure" / name_of(self.run) / f"{self.session}.json"

    def _state(self) -> dict[str, Any]:
        """What is kept of the session; a new one begins with new secrets, and ends the oldest."""
        if self._file.exists():
            state: dict[str, Any] = json.loads(self._file.read_bytes())
            return state
        if self.session in self._ended():
            raise PolicyRefusal(RULE, "the session has ended here")
        new = {name: secrets.token_hex(masks.KEY_BYTES) for name in (*_HALVES, "seal_key", "sign_key")}
        self._keep(new)
        self._forget()
        return new

    def _keep(self, state: Mapping[str, Any]) -> None:
        self._file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_atomically(self._file, json.dumps(state).encode(), mode=0o600)

    def _ended(self) -> list[str]:
        """Sessions of the run that were deleted: with new secrets under an old name, old messages of others would be taken."""
        file = self._file.parent / _ENDED
        return file.read_text().split() if file.exists() else []

    def _forget(self) -> None:
        sessions = sorted(self._file.parent.glob("*.json"), key=lambda file: file.stat().st_mtime_ns)
        ended = self._ended() + [file.stem for file in sessions[:-_SESSIONS]]
        write_atomically(self._file.parent / _ENDED, "\n".join(ended).encode(), mode=0o600)
        for file in sessions[:-_SESSIONS]:
            file.unlink()
        keep_newest(self._file.parents[1], _RUNS, but=self._file.parent)


@dataclass(frozen=True, slots=True)
class Summing:
    """A session whose masked vector an order asks for, and who takes part in it."""

    sum: Sum
    party: Party

    def reply(self, layout: Layout, arrays: Mapping[str, NDArray[np.float64]]) -> dict[str, object]:
        """What a reply says of it: the vector of :meth:`Sum.mask`, and its mark."""
        masked = self.sum.mask(self.party, layout, arrays)
        return {"masked": masked, "secure": to_text(self.sum.mark(self.party))}


def _key(circle: Circle, site: str, name: str) -> bytes:
    return bytes.fromhex(getattr(circle.offer(site), name))
