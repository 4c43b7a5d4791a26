"""``fedmed site check``: the way to the coordinator step by step, each with its own verdict, and no step waits for long."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import threading
from base64 import b64encode
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from fedmed_client.link import problems, reach
from fedmed_client.link.pace import LEASE_SECONDS
from fedmed_client.link.reach import CONNECT_SECONDS, Reach
from fedmed_client.link.status import Standing
from fedmed_client.site.home import SiteFolder
from fedmed_common import errors, identity
from fedmed_common.errors import (
    ConnectionProblem,
    FedmedError,
    ProvisionError,
    TransportAway,
    Unreachable,
)

_HANG_UP_SECONDS = 1.0
_LOOK_UP_SECONDS = 4.0
_WAIT = "wait a little, or tell the coordinator"
_KINDS = {
    kind.code: kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, ConnectionProblem)
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step and what came of it; ``error`` where it failed."""

    name: str
    said: str
    error: FedmedError | None = None


def check(home: SiteFolder) -> list[Step]:
    """All steps up to the first that fails."""
    steps: list[Step] = []
    found: list[Reach] = []

    def load() -> str:
        found.append(reach.load(home))
        return f"{found[0].connection.site} in {found[0].connection.consortium}"

    plan: tuple[tuple[str, Callable[[], str]], ...] = (
        ("files", load),
        ("certificate", lambda: _certificate(found[0])),
        ("name", lambda: look_up(found[0])),
        ("connection", lambda: _connection(found[0])),
        ("coordinator", lambda: _coordinator(home, found[0])),
    )
    for name, step in plan:
        try:
            steps.append(Step(name=name, said=step()))
        except FedmedError as error:
            steps.append(Step(name=name, said=str(error), error=error))
            break
    return steps


def look_up(way: Reach) -> str:
    """Look the name of the coordinator, or of the proxy, up; where from here its address was found.

    Raises:
        UnknownHost, ProxyRefuses: it has none.
    """
    host, port = _next_stop(way)
    answers: list[str] = []

    def ask() -> None:
        with suppress(OSError, UnicodeError):
            answers.append(str(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][4][0]))

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(_LOOK_UP_SECONDS)
    if not answers:
        raise problems.unknown_host(way)
    return f"{host} is {answers[0]}" + (", a proxy" if way.proxy else "")


def closer_look(way: Reach) -> ConnectionProblem | None:
    """What is wrong between here and the server's TLS, where that can be said without asking it anything."""
    try:
        _connection(way)
    except ConnectionProblem as problem:
        return problem
    return None


def _certificate(way: Reach) -> str:
    warning = identity.expiry_warning(way.certificate, "this site's certificate", "have it renewed in time")
    return warning or f"valid until {way.certificate.not_valid_after_utc:%Y-%m-%d}"


def _connection(way: Reach) -> str:
    """Connect and shake hands, and see whether the server hangs up at the sight of this site's certificate."""
    try:
        with (
            closing(_plain(way)) as plain,
            way.trust.wrap_socket(plain, server_hostname=way.connection.host) as secure,
        ):
            version = secure.version()
            if _hangs_up(secure, way):
                raise problems.closed(way)
            return f"{version} with {way.address}"
    except OSError as error:
        raise problems.of_transport(error, way) from error


def _hangs_up(secure: ssl.SSLSocket, way: Reach) -> bool:
    secure.settimeout(_HANG_UP_SECONDS)
    try:
        return not secure.recv(1)
    except TimeoutError:
        return False
    except ssl.SSLError as error:
        raise problems.of_transport(error, way) from error
    except OSError:
        return True


def _plain(way: Reach) -> socket.socket:
    """A connection to the coordinator's port, where need be through the proxy."""
    stream = socket.create_connection(_next_stop(way), CONNECT_SECONDS)
    if not way.proxy:
        return stream
    try:
        trust = reach.proxy_trust(way)
        if trust is not None:
            stream = trust.wrap_socket(stream, server_hostname=urlsplit(way.proxy).hostname)
        host = f"[{way.connection.host}]" if ":" in way.connection.host else way.connection.host
        place = f"{host}:{way.connection.port}"
        stream.sendall(f"CONNECT {place} HTTP/1.1\r\nHost: {place}\r\n{_credentials(way)}\r\n".encode())
        with http.client.HTTPResponse(stream, method="CONNECT") as answer:
            answer.begin()
    except http.client.HTTPException as error:
        stream.close()
        raise problems.of_proxy_answer("no HTTP", way) from error
    except OSError:
        stream.close()
        raise
    if answer.status != 200:
        stream.close()
        raise problems.of_proxy_answer(str(answer.status), way)
    return stream


def _credentials(way: Reach) -> str:
    parts = urlsplit(way.proxy)
    if not parts.username:
        return ""
    pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return f"Proxy-Authorization: Basic {b64encode(pair.encode()).decode()}\r\n"


def _next_stop(way: Reach) -> tuple[str, int]:
    """Who is connected to from here: the coordinator, or the proxy."""
    if not way.proxy:
        return way.connection.host, way.connection.port
    parts = urlsplit(way.proxy)
    return parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)


def _coordinator(home: SiteFolder, way: Reach) -> str:
    """Whether the server takes this site: asked by connecting for a moment, or known from the link that runs."""
    from fedmed_client.link.flower import Fleet

    try:
        with home.locked("link"):
            fleet = Fleet(way)
            try:
                fleet.activate(LEASE_SECONDS)
                fleet.deactivate()
            finally:
                fleet.close()
    except ProvisionError:
        return _as_the_link_says(home)
    except TransportAway as away:
        raise problems.say(Unreachable, str(away), _WAIT) from None
    return "the coordinator's server takes this site"


def _as_the_link_says(home: SiteFolder) -> str:
    try:
        said = Standing(**json.loads(home.status_file.read_bytes())["standing"])
    except (OSError, ValueError, KeyError, TypeError):
        return "the site runs, and its link has not said yet how it stands"
    if said.code:
        raise problems.say(_KINDS.get(said.code, Unreachable), said.problem, said.fix or _WAIT)
    return f"the site runs, and its link says: {said.state}"
