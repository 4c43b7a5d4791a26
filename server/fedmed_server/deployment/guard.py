"""What stands between the network and Flower: an ASGI application around Flower's, outermost on the port that sites reach.

Only the calls that a site makes are served. A request is read up to a bound, admitted or refused as a whole, and handed on
unaltered. A refusal says one word, from ``signed_requests.REFUSALS``, and the server's time and version. A server that has too
much to read or to do answers 503, in the form of Flower's own errors but without a code of Flower's, and is asked again later.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, MutableMapping
from contextlib import ExitStack, contextmanager
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

from fedmed_common.errors import RequestRefused
from fedmed_common.signed_requests import (
    INTERVAL_HEADER,
    REFUSAL_HEADER,
    SERVER_TIME_HEADER,
    SERVER_VERSION_HEADER,
    header_of,
    installed_version,
)
from fedmed_common.wire_files import PREFIX
from fedmed_server.deployment.admission import Admission, Request
from fedmed_server.deployment.bodies import Bodies
from fedmed_server.deployment.bulk import Bulk
from fedmed_server.deployment.places import Busy, Places, interval_seconds

HEALTH = "/health"
FLEET_PATHS = frozenset(
    f"/v1/fleet/{call}"
    for call in (
        "activate-node",
        "deactivate-node",
        "send-node-heartbeat",
        "pull-messages",
        "push-messages",
        "get-run",
        "get-fab",
        "push-object",
        "pull-object",
        "confirm-message-received",
    )
)
"""The calls of a site. Flower has two more, with which a node registers and removes itself; here the registry does."""

_STATUS = {"unknown-path": 404, "not-asked": 404, "too-large": 413, "digest": 422, "disk": 507}
_log = logging.getLogger(__name__)


class Guard:
    """Serves sites, and nothing but what sites may ask."""

    def __init__(self, app: ASGIApp, admission: Admission, bulk: Bulk, *, body_bytes: int) -> None:
        self._app, self._admission, self._bodies = app, admission, Bodies(body_bytes)
        self._bulk, self._places = bulk, Places()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with ExitStack() as place:
            try:
                if scope["path"].startswith(PREFIX):
                    await self._pass_numbers(scope, receive, send)
                    return
                if not _is_health(scope):
                    receive = _once(await self._admitted(scope, receive, place), receive)
                    send = _with_interval(interval_seconds(self._admission.connected), send)
            except RequestRefused as refusal:
                await _refuse(refusal.reason, send)
                return
            except Busy:
                await _answer(503, {"content-type": "application/json"}, send)
                return
            except ClientDisconnect:
                return
            await self._app(scope, receive, send)

    async def _admitted(self, scope: Scope, receive: Receive, place: ExitStack) -> bytes:
        """The body of a request that may pass; it has its place until ``place`` is left."""
        path, headers = scope["path"], _headers(scope)
        if scope["method"] != "POST" or path not in FLEET_PATHS or scope["query_string"]:
            raise RequestRefused("unknown-path")
        with _told(scope, headers):
            self._places.check(path)
            site = await self._admission.known(headers)
            async with self._bodies.read(site, headers, receive) as body:
                place.enter_context(self._places.take(path))
                await self._admission.admit(
                    site, Request(method="POST", path=path, headers=headers, body=body)
                )
        return body

    async def _pass_numbers(self, scope: Scope, receive: Receive, send: Send) -> None:
        """A piece of an array, whose bytes the signature does not cover: the digest in the path is theirs."""
        path, headers = scope["path"], _headers(scope)
        if scope["query_string"]:
            raise RequestRefused("unknown-path")
        with _told(scope, headers):
            site = await self._admission.known(headers)
            request = Request(method=scope["method"], path=path, headers=headers, body=b"")
            await self._admission.admit(site, request)
            await self._bulk.serve(site, self._admission.node(site), scope, receive, send)


@contextmanager
def _told(scope: Scope, headers: dict[str, str]) -> Iterator[None]:
    """A refusal of what a site asks is logged."""
    try:
        yield
    except RequestRefused as refusal:
        name, call = headers.get(header_of("site"), "")[:64], scope["path"].removeprefix("/v1/fleet/")[:24]
        _log.warning("%s of %r from %s is refused: %s", call, name, _peer(scope), refusal.reason)
        raise


class ControlGuard:
    """On the private port: Flower's own pages are off, and every call of its Control API needs the token.

    Flower itself asks for the token at all of these calls but those with which a person logs in.
    """

    _SERVED = ("/v1/control/", "/v1/runtime/")
    _LOGIN = frozenset(
        f"/v1/control/{call}" for call in ("get-login-details", "get-auth-tokens", "refresh-auth-tokens")
    )

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] in self._LOGIN:
            await _answer(401, {}, send)
        elif scope["type"] == "lifespan" or _is_health(scope) or scope["path"].startswith(self._SERVED):
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await _refuse("unknown-path", send)


def _peer(scope: Scope) -> str:
    return str(scope["client"][0]) if scope.get("client") else "?"


def _is_health(scope: Scope) -> bool:
    return bool(scope["type"] == "http" and scope["path"] == HEALTH and scope["method"] in {"GET", "HEAD"})


def _headers(scope: Scope) -> dict[str, str]:
    """Lower-case names. A name given twice has both values, which no signature fits."""
    found: dict[str, str] = {}
    for raw_name, raw_value in scope["headers"]:
        name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1")
        found[name] = f"{found[name]}, {value}" if name in found else value
    return found


def _once(body: bytes, receive: Receive) -> Receive:
    """The body that was read already, then whatever comes after."""
    given = False

    async def again() -> MutableMapping[str, Any]:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


def _with_interval(seconds: float, send: Send) -> Send:
    header = INTERVAL_HEADER.encode(), f"{seconds:.1f}".encode()

    async def also(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", ()), header]}
        await send(message)

    return also


async def _refuse(reason: str, send: Send) -> None:
    headers = {
        REFUSAL_HEADER: reason,
        SERVER_TIME_HEADER: f"{time.time():.3f}",
        SERVER_VERSION_HEADER: installed_version(),
    }
    await _answer(_STATUS.get(reason, 403), headers, send)


async def _answer(status: int, headers: dict[str, str], send: Send) -> None:
    raw = [(name.encode(), value.encode()) for name, value in {**headers, "content-length": "0"}.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": b""})
