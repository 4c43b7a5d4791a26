"""Who may ask: the registry's sites, with a fresh signature, one link each. Every refusal has its reason."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

from fedmed_common.errors import ProvisionError, RequestRefused
from fedmed_common.signed_requests import Stamp, header_of, installed_version, verify, works_with
from fedmed_server.deployment.home import ServerHome
from fedmed_server.deployment.site_states import (
    Refusal,
    SiteState,
    State,
    load_site_states,
    moment,
    save_site_states,
)
from fedmed_server.provision.registry import RegisteredSite, load_registry, mark

ACTIVATE = "/v1/fleet/activate-node"

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Claims:
    """Whose node a request says it is, and which public keys it names."""

    nodes: frozenset[int] = frozenset()
    keys: frozenset[bytes] = frozenset()


class Nodes(Protocol):
    """Flower's side of the sites; ``flower_superlink.FlowerNodes`` is the one that runs."""

    def register(self, keys: Mapping[str, EllipticCurvePublicKey]) -> dict[str, int]:
        """Make exactly these sites nodes; node by site."""

    def online(self) -> frozenset[int]:
        """The nodes whose link is there."""

    def is_online(self, node: int) -> bool:
        """Whether the node's link is there."""

    def deactivate(self, node: int) -> None:
        """Take the node's link as gone."""

    def claims(self, path: str, body: bytes) -> Claims:
        """What a request says about itself."""

    def key_text(self, key: EllipticCurvePublicKey) -> bytes:
        """A public key as requests carry it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request of a site, whole; ``headers`` has lower-case names."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


class Admission:
    """Admits or refuses. Used in one event loop; what blocks is done in threads."""

    def __init__(self, home: ServerHome, nodes: Nodes) -> None:
        self._home, self._nodes = home, nodes
        self._skew_seconds = home.settings().limits.skew_seconds
        self._sites: dict[str, RegisteredSite] = {}
        self._node_of: dict[str, int] = {}
        self._registry_read: tuple[int, int, int] | None = None
        self._states = load_site_states(home.site_states)
        self._written: dict[str, SiteState] | None = None
        self._nonces = Nonces(self._states, self._skew_seconds)
        self._reading, self._writing = asyncio.Lock(), asyncio.Lock()
        self._asked = self._answered = 0
        self.connected = 0
        """How many sites were connected when that was looked at last."""

    async def known(self, headers: Mapping[str, str]) -> str:
        """The registered site that a request names, before its body is read.

        Raises:
            RequestRefused: ``signature`` where it names none, ``unregistered`` where nobody knows it.
        """
        name = headers.get(header_of("site"), "")
        if not name:
            raise RequestRefused("signature")
        await self._read_registry()
        if name not in self._sites:
            raise RequestRefused("unregistered")
        return name

    async def admit(self, name: str, request: Request) -> None:
        """Let a registered site's request through.

        Raises:
            RequestRefused: with its reason, which is noted in the site's state.
        """
        site = self._sites.get(name)
        if site is None:  # the registry changed while the body came
            raise RequestRefused("unregistered")
        try:
            stamp = _verified(site, request)
            self._judge(site, stamp)
            await self._judge_link(site, stamp, request)
        except RequestRefused as refusal:
            self._note(name, refusal=Refusal(code=refusal.reason, time=moment(time.time())))
            raise
        signed = max(stamp.time, self._states[name].signed_seconds)
        self._note(
            name,
            instance=stamp.instance,
            boot=stamp.boot,
            last_seen=moment(time.time()),
            signed_seconds=signed,
        )
        if request.path == ACTIVATE:
            await self.look()

    def node(self, name: str) -> int | None:
        """The registered site's node."""
        return self._node_of.get(name)

    async def look(self) -> None:
        """What is due each second, and when a link begins: a changed registry takes effect, changed states are written.

        Raises:
            ProvisionError: there is no registry, and never was.
        """
        await self._read_registry()
        self._asked += 1
        mine = self._asked
        async with self._writing:
            if (
                self._answered >= mine
            ):  # a look that began since then saw the same: links that begin together share it
                return
            shared = self._asked
            online = await asyncio.to_thread(self._nodes.online)
            self.connected = len(online)
            states = {name: self._current(site, online) for name, site in self._sites.items()}
            if states != self._written:
                try:
                    await asyncio.to_thread(save_site_states, self._home.site_states, states)
                    self._written = states
                except OSError as error:
                    _log.error("the states of the sites cannot be written: %s", error)
            self._answered = shared

    async def _read_registry(self) -> None:
        if mark(self._home.registry) == self._registry_read:
            return
        async with self._reading:
            now = mark(self._home.registry)
            if now == self._registry_read:
                return
            try:
                sites = load_registry(self._home.registry)
            except ProvisionError as error:
                if self._registry_read is None:
                    raise
                _log.error("the registry as it was read last still holds: %s", error)
                self._registry_read = now
                return
            keys = {name: site.public_key for name, site in sites.items() if not site.revoked}
            self._sites = sites
            self._node_of = await asyncio.to_thread(self._nodes.register, keys)
            self._registry_read = now

    def _judge(self, site: RegisteredSite, stamp: Stamp) -> None:
        if site.revoked:
            raise RequestRefused("revoked")
        skew = stamp.time - time.time()
        self._note(site.name, version=stamp.version, clock_skew_seconds=round(skew, 3))
        if abs(skew) > self._skew_seconds:
            raise RequestRefused("clock")
        if not works_with(stamp.version, installed_version()):
            raise RequestRefused("version")
        self._nonces.use(stamp)

    async def _judge_link(self, site: RegisteredSite, stamp: Stamp, request: Request) -> None:
        node, key = self._node_of.get(site.name), self._nodes.key_text(site.public_key)
        claims = self._nodes.claims(request.path, request.body)
        if claims.nodes - {node} or claims.keys - {key}:
            raise RequestRefused("another-node")
        last = self._states.get(site.name, SiteState())
        if request.path != ACTIVATE:
            if last.instance and (last.instance, last.boot) != (stamp.instance, stamp.boot):
                raise RequestRefused("in-use")
        elif node is not None and await asyncio.to_thread(self._nodes.is_online, node):
            if last.instance and last.instance != stamp.instance:
                raise RequestRefused("in-use")
            await asyncio.to_thread(self._nodes.deactivate, node)

    def _note(self, name: str, **changes: Any) -> None:
        self._states[name] = replace(self._states.get(name, SiteState()), **changes)

    def _current(self, site: RegisteredSite, online: frozenset[int]) -> SiteState:
        """The site's state as it is written: whether it is there is Flower's to say, from its heartbeats."""
        noted = self._states.get(site.name, SiteState())
        refusal = noted.refusal or (Refusal(code="revoked", time=site.revoked) if site.revoked else None)
        state: State = "away" if noted.last_seen else "never"
        if not site.revoked and self._node_of.get(site.name) in online:
            state = "connected"
        elif refusal is not None and (site.revoked or refusal.time > noted.last_seen):
            state = "refused"
        expires = site.certificate.not_valid_after_utc.isoformat()
        return replace(noted, state=state, refusal=refusal, certificate_expires=expires)


class Nonces:
    """The requests that were admitted lately, so that none is admitted twice.

    A server that was started anew does not know them; it takes what a site signed no later than its last admitted request as
    repeated. A clock that stepped back since then cannot shut a site out for longer than clocks may differ.
    """

    def __init__(self, states: Mapping[str, SiteState], skew_seconds: float) -> None:
        self._kept_seconds = 2 * skew_seconds
        latest = time.time() + skew_seconds
        self._from = {name: min(state.signed_seconds, latest) for name, state in states.items()}
        self._until: dict[tuple[str, str], float] = {}

    def use(self, stamp: Stamp) -> None:
        """Take the stamp's nonce.

        Raises:
            RequestRefused: ``replayed``.
        """
        now, nonce = time.monotonic(), (stamp.site, stamp.nonce)
        while self._until and next(iter(self._until.values())) < now:
            del self._until[next(iter(self._until))]
        if nonce in self._until or stamp.time <= self._from.get(stamp.site, 0.0):
            raise RequestRefused("replayed")
        self._until[nonce] = now + self._kept_seconds


def _verified(site: RegisteredSite, request: Request) -> Stamp:
    try:
        return verify(site.public_key, request.method, request.path, request.body, request.headers)
    except RequestRefused:
        # Another version may sign otherwise: then that is the reason which helps.
        version = request.headers.get(header_of("version"), "")
        other = bool(version) and not works_with(version, installed_version())
        raise RequestRefused("version" if other else "signature") from None
