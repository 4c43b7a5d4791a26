"""Every way in which a connection fails, as one sentence and what to do about it."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime

import httpx

from fedmed_client.link.reach import Reach
from fedmed_common.errors import (
    ClockOff,
    ConnectionProblem,
    IdentityRefused,
    KeyInUse,
    NotRegistered,
    NotTheCoordinator,
    ProxyRefuses,
    Revoked,
    ServerExpired,
    UnknownHost,
    Unreachable,
    VersionMismatch,
    WrongAuthority,
    WrongName,
)
from fedmed_common.signed_requests import (
    SERVER_TIME_HEADER,
    SERVER_VERSION_HEADER,
    installed_version,
    works_with,
)

MAY_PASS = (Unreachable, UnknownHost, ProxyRefuses, ClockOff, ServerExpired, NotTheCoordinator)
"""Problems that can end without anybody at this site: a site that was connected before waits for that."""

_EXPIRED, _NOT_YET_VALID = 10, 9  # OpenSSL's X509_V_ERR_*
_WRONG_NAMES = (62, 64)
_BROKEN = (
    ssl.SSLEOFError,
    ConnectionResetError,
    BrokenPipeError,
    httpx.ReadError,
    httpx.WriteError,
    httpx.RemoteProtocolError,
)
_GATEWAY = (502, 503, 504)
_ASK = "ask the coordinator"


def say(kind: type[ConnectionProblem], problem: str, fix: str) -> ConnectionProblem:
    """A problem as all of them are told: one sentence, and what to do."""
    return kind(f"{problem}\n  fix: {fix}")


def of_transport(error: BaseException, reach: Reach) -> ConnectionProblem:
    """What an exception of the network means: it was raised before an answer came."""
    chain = list(_causes(error))
    for cause in chain:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return _of_certificate(cause, reach)
    for cause in chain:
        if isinstance(cause, httpx.ProxyError):
            return of_proxy_answer(str(cause), reach)
        if isinstance(cause, ssl.SSLError) and not isinstance(cause, ssl.SSLEOFError):
            return _of_tls(cause, reach)
    return _of_socket(chain, reach)


def of_refusal(reason: str, headers: Mapping[str, str], reach: Reach) -> ConnectionProblem:
    """What a refusal by the coordinator's server means; ``reason`` is one of ``signed_requests.REFUSALS``."""
    site, server = reach.connection.site, headers.get(SERVER_VERSION_HEADER, "unknown")
    if reason == "clock":
        return _of_clock(headers)
    if reason == "unknown-path" and works_with(server, installed_version()):
        return not_the_coordinator(reach, "it does not know what a site asks")
    if reason in {"version", "unknown-path"}:
        return say(
            VersionMismatch,
            f"the coordinator's server runs fedmed {server[:32]}, this site {installed_version()}",
            "install the coordinator's version here, or ask the coordinator which one to use",
        )
    kind, problem, fix = {
        "unregistered": (
            NotRegistered,
            f"the coordinator does not know the site '{site}'",
            "send request.json to the coordinator, and install the answer with 'fedmed site join'",
        ),
        "revoked": (Revoked, f"the consortium has revoked the site '{site}'", f"{_ASK} why"),
        "in-use": (
            KeyInUse,
            f"another machine is connected as '{site}' with this site's key",
            f"stop the other one; if nobody here started it, tell the coordinator to revoke '{site}'",
        ),
        "another-node": (
            IdentityRefused,
            "the coordinator's server refuses this site's node: it is another's",
            "start the site anew",
        ),
    }.get(
        reason,
        (
            IdentityRefused,
            f"the coordinator's server refuses this site's signature ({reason[:32]})",
            "install the newest answer with 'fedmed site join'; the server knows another key of this site",
        ),
    )
    return say(kind, problem, fix)


def of_answer(response: httpx.Response, reach: Reach) -> ConnectionProblem:
    """What an answer means that no fedmed server gives."""
    status = response.status_code
    if status in _GATEWAY:
        return say(
            Unreachable,
            f"a gateway at {reach.address} answers for the coordinator's server that it is away ({status})",
            "wait, or tell the coordinator that the server is down",
        )
    kind = response.headers.get("content-type", "no content type").partition(";")[0][:40]
    return not_the_coordinator(reach, f"it answers with status {status} and {kind}")


def of_proxy_answer(said: str, reach: Reach) -> ConnectionProblem:
    """What a proxy's refusal means; ``said`` begins with its status."""
    proxy, status = reach.proxy_address, said[:3]
    if status in {str(number) for number in _GATEWAY}:
        return say(
            Unreachable,
            f"the proxy {proxy} cannot reach {reach.address} ({status})",
            f"have {reach.address} permitted in the firewall for the proxy, or tell the coordinator",
        )
    needs = "it wants a user name and a password" if status == "407" else "it forbids it"
    fix = (
        "name them in network.proxy of site.toml, as http://user:password@host:port"
        if status == "407"
        else f"have CONNECT to {reach.address} permitted at the proxy, or except the host with network.no_proxy"
    )
    return say(ProxyRefuses, f"the proxy {proxy} refuses the way to {reach.address}: {needs} ({status})", fix)


def not_the_coordinator(reach: Reach, why: str) -> ConnectionProblem:
    """What answers is something else."""
    return say(
        NotTheCoordinator,
        f"what answers at {reach.address} is not a fedmed server: {why}",
        "compare the address with the coordinator's; a firewall or proxy may answer in its place",
    )


def closed(reach: Reach) -> ConnectionProblem:
    """The server hangs up as soon as it has seen the certificate."""
    return say(
        IdentityRefused,
        f"the server at {reach.address} ends the connection when this site shows its certificate",
        "ask the coordinator whether its authority was renewed, and check that both clocks are right; "
        "a proxy that inspects TLS hides the certificate and must leave this connection alone",
    )


def _of_certificate(error: ssl.SSLCertVerificationError, reach: Reach) -> ConnectionProblem:
    clock = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    if error.verify_code == _EXPIRED:
        return say(
            ServerExpired,
            f"the certificate of {reach.address} has expired; this machine's clock says {clock}",
            "set this machine's clock if it is wrong; else tell the coordinator to renew it",
        )
    if error.verify_code == _NOT_YET_VALID:
        return say(
            ClockOff,
            f"the certificate of {reach.address} is not valid yet by this machine's clock, which says {clock}",
            "set this machine's clock, best by NTP",
        )
    if error.verify_code in _WRONG_NAMES:
        return say(
            WrongName,
            f"the certificate that is shown at {reach.address} is for another name",
            "compare the address in connection.json with the coordinator's; do not go on if it is right",
        )
    return say(
        WrongAuthority,
        f"the certificate of {reach.address} is not from this consortium's authority",
        "if a proxy here inspects TLS, name its authority as network.ca in site.toml; "
        "else somebody stands in between, or the kit is of another consortium",
    )


def _of_tls(error: ssl.SSLError, reach: Reach) -> ConnectionProblem:
    reason = error.reason or ""
    if "CERTIFICATE_EXPIRED" in reason:
        # By this machine's clock it has not (that is judged before), and whoever sits on the way can send an alert.
        return say(
            ClockOff,
            f"the server at {reach.address} takes this site's certificate for expired, and by this machine's clock it is not",
            "compare both clocks, and set the one that is wrong",
        )
    if "ALERT" in reason and any(word in reason for word in ("CERTIFICATE", "UNKNOWN_CA", "ACCESS_DENIED")):
        return closed(reach)
    if reach.proxy.startswith("https:"):
        return say(
            ProxyRefuses,
            f"there is no TLS with the proxy {reach.proxy_address}",
            "check network.proxy in site.toml: most proxies are reached by http://",
        )
    return not_the_coordinator(reach, "it does not speak TLS as a fedmed server does")


def _of_socket(chain: list[BaseException], reach: Reach) -> ConnectionProblem:
    def any_of(*kinds: type[BaseException]) -> bool:
        return any(isinstance(cause, kinds) for cause in chain)

    if any_of(socket.gaierror):
        return unknown_host(reach)
    ended = any(word in str(chain[0]) for word in ("disconnected", "peer closed"))
    if any_of(httpx.RemoteProtocolError) and not ended:
        return not_the_coordinator(reach, "it does not speak HTTP")
    if any_of(*_BROKEN):
        return _unreachable(reach, "the connection breaks off")
    if any_of(httpx.ReadTimeout, httpx.WriteTimeout, httpx.PoolTimeout):
        return _unreachable(reach, "the connection stands, and no answer comes")
    why = "there is no way there from here"
    if any_of(ConnectionRefusedError):
        why = "nothing listens there, or a firewall refuses"
    elif any_of(TimeoutError, httpx.ConnectTimeout):
        why = "there is no answer; a firewall may drop the packets"
    if not reach.proxy:
        return _unreachable(reach, why)
    return say(
        ProxyRefuses,
        f"the proxy {reach.proxy_address} cannot be reached: {why}",
        "check network.proxy in site.toml and HTTPS_PROXY, or except the coordinator with network.no_proxy",
    )


def _unreachable(reach: Reach, why: str) -> ConnectionProblem:
    return say(
        Unreachable,
        f"the coordinator's server cannot be reached at {reach.address}: {why}",
        f"permit TCP from this machine to {reach.address}, or ask the coordinator whether the server runs",
    )


def unknown_host(reach: Reach) -> ConnectionProblem:
    """A name that cannot be looked up."""
    if reach.proxy:
        return say(
            ProxyRefuses,
            f"the name of the proxy {reach.proxy_address} cannot be looked up",
            "check network.proxy in site.toml, HTTPS_PROXY, and this machine's DNS",
        )
    return say(
        UnknownHost,
        f"the name of the coordinator's server, {reach.connection.host}, cannot be looked up",
        "check this machine's DNS; if it is right, compare the name with the coordinator's",
    )


def _of_clock(headers: Mapping[str, str]) -> ConnectionProblem:
    try:
        skew = time.time() - float(headers.get(SERVER_TIME_HEADER, ""))
        told = f"{abs(skew):.0f} seconds {'ahead of' if skew > 0 else 'behind'}"
    except ValueError:
        told = "too far from"
    return say(
        ClockOff,
        f"this machine's clock is {told} the clock of the coordinator's server",
        "set the clock, best by NTP; if it is right, tell the coordinator",
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
