"""How a site reaches its coordinator: who it is, which way it goes, and whom it trusts."""

from __future__ import annotations

import ipaddress
import secrets
import ssl
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httpx
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

from fedmed_client.site.home import SiteFolder
from fedmed_common import identity
from fedmed_common.consortium import Connection
from fedmed_common.enrolment import check_certificate
from fedmed_common.errors import ConfigError, OwnExpired, ProvisionError
from fedmed_common.site_config import Network

CONNECT_SECONDS = 4.0
ANSWER_SECONDS = 20.0
KEPT_SECONDS = 30.0
"""A connection is used again until it was idle for so long: a new one costs both sides more than a question. The server
keeps it longer, and no pause between questions is longer."""

LARGEST_ANSWER_BYTES = 8 * 2**20
"""Of one answer. The largest are objects of an order: pieces of 5 MiB and their heads; a bundle has 1 MB at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    """All that a connection needs. ``proxy``: its URL, empty where there is none. ``boot`` is new each time."""

    connection: Connection
    key: EllipticCurvePrivateKey = field(repr=False)
    certificate: x509.Certificate = field(repr=False)
    certificate_stamp: int
    trust: ssl.SSLContext = field(repr=False)
    proxy: str = field(repr=False)
    instance: str
    boot: str

    @property
    def address(self) -> str:
        """The coordinator, for people."""
        return self.connection.address

    @property
    def proxy_address(self) -> str:
        """The proxy without its password, for people; empty where there is none."""
        parts = urlsplit(self.proxy)
        return parts.netloc.rpartition("@")[2]

    def check_time(self) -> None:
        """Raises :class:`OwnExpired` where this site's certificate is not valid at this moment."""
        wrong = identity.expiry_warning(self.certificate, "this site's certificate", "", warn_days=0)
        if wrong:
            raise OwnExpired(
                f"{wrong.removesuffix('; ')}\n"
                "  fix: set this machine's clock if it is wrong; else ask the coordinator for a new certificate, "
                "and install it with 'fedmed site join'"
            )

    def client(self) -> Client:
        """A client for HTTP that trusts the consortium alone, goes the configured way and follows no redirection.

        Its answers are bounded and taken as they are; it says no more of this machine than it must.
        """
        proxy = httpx.Proxy(self.proxy, ssl_context=proxy_trust(self)) if self.proxy else None
        return Client(
            headers={"user-agent": "fedmed", "accept-encoding": "identity"},
            verify=self.trust,
            proxy=proxy,
            trust_env=False,
            follow_redirects=False,
            timeout=httpx.Timeout(ANSWER_SECONDS, connect=CONNECT_SECONDS),
            limits=httpx.Limits(keepalive_expiry=KEPT_SECONDS),
        )


class Client(httpx.Client):
    """Reads no more of an answer than may be in one, and inflates nothing."""

    def send(self, request: httpx.Request, *, stream: bool = False, **options: Any) -> httpx.Response:
        """As httpx's. Raises ``httpx.DecodingError`` where the answer is too large or compressed."""
        with self.opened(request, **options) as response:
            return whole(response)

    @contextmanager
    def opened(self, request: httpx.Request, **options: Any) -> Iterator[httpx.Response]:
        """An answer whose body is still to be read, and may be left unread. Raises as :meth:`send`."""
        response = super().send(request, stream=True, **options)
        try:
            if response.headers.get("content-encoding", "identity") != "identity":
                raise httpx.DecodingError("compressed", request=request)
            yield response
        finally:
            response.close()


def whole(response: httpx.Response) -> httpx.Response:
    """An opened answer with all of its body. Raises ``httpx.DecodingError`` where that is too large."""
    content = bytearray()
    for piece in response.iter_raw():
        content += piece
        if len(content) > LARGEST_ANSWER_BYTES:
            raise httpx.DecodingError("too large", request=response.request)
    return httpx.Response(
        response.status_code, headers=response.headers, content=bytes(content), request=response.request
    )


def load(home: SiteFolder) -> Reach:
    """What the site's folder says, checked as far as that goes without a network.

    Raises:
        ConfigError, ProvisionError: a file is missing, wrong, or another's.
        OwnExpired: this site's certificate is not valid now.
    """
    connection, site = home.connection(), home.site()
    if site.name != connection.site:
        raise ConfigError(
            f"is '{site.name}', and the consortium knows this site as '{connection.site}'",
            file=home.site_file,
            field="name",
            fix=f'name = "{connection.site}"',
        )
    stamp = certificate_stamp(home)
    key, certificate = home.key(), home.certificate()
    _check(home, connection, key, certificate)
    reach = Reach(
        connection=connection,
        key=key,
        certificate=certificate,
        certificate_stamp=stamp,
        trust=_trust(home, site.network),
        proxy=find_proxy(connection, site.network),
        instance=home.instance(),
        boot=secrets.token_hex(8),
    )
    reach.check_time()
    return reach


def certificate_stamp(home: SiteFolder) -> int:
    """Changes when another certificate is installed."""
    try:
        return home.certificate_file.stat().st_mtime_ns
    except OSError:
        return 0


def find_proxy(connection: Connection, network: Network) -> str:
    """The proxy's URL: the one in ``site.toml``, else the environment's, and none for hosts that are excepted.

    Raises:
        ConfigError: it is no proxy's URL. What it is, is not said: there may be a password in it.
    """
    place = f"{connection.host}:{connection.port}"
    if network.no_proxy and _is_excepted(place, ",".join(network.no_proxy)):
        return ""
    if network.proxy is not None:
        return _checked(network.proxy, "network.proxy in site.toml")
    known = urllib.request.getproxies_environment()
    found = known.get("https") or known.get("all") or ""
    if not found or _is_excepted(place, known.get("no", "")):
        return ""
    return _checked(found if "://" in found else f"http://{found}", "HTTPS_PROXY")


def proxy_trust(reach: Reach) -> ssl.SSLContext | None:
    """Whom to trust as a proxy that is itself reached by TLS: the usual authorities, not the consortium's."""
    return ssl.create_default_context() if reach.proxy.startswith("https:") else None


def _checked(proxy: str, place: str) -> str:
    try:
        parts = urlsplit(proxy)
        usable = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
        usable = usable and httpx.URL(proxy).host == parts.hostname
        usable = usable and parts.path in {"", "/"} and not parts.query and not parts.fragment
    except (ValueError, httpx.InvalidURL):
        usable = False
    if not usable:
        raise ConfigError(
            "is not the address of an HTTP proxy",
            field=place,
            fix="write http://host:port or http://user:password@host:port; "
            "in a password, write %2F for /, %3F for ?, %23 for #, %40 for @ and %25 for %",
        )
    return proxy


def _is_excepted(place: str, exceptions: str) -> bool:
    """Exceptions are names, also of whole domains, addresses, and networks as 10.0.0.0/8."""
    if urllib.request.proxy_bypass_environment(place, {"no": exceptions}):  # type: ignore[attr-defined]
        return True
    host = place.rpartition(":")[0]
    for exception in exceptions.split(","):
        try:
            if ipaddress.ip_address(host) in ipaddress.ip_network(exception.strip(), strict=False):
                return True
        except ValueError:
            continue
    return False


def _trust(home: SiteFolder, network: Network) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_verify_locations(home.authority_file)
    context.load_cert_chain(home.certificate_file, home.key_file)
    if network.ca is not None:
        try:
            context.load_verify_locations(network.ca)
        except OSError as error:
            why = "it holds no certificate" if isinstance(error, ssl.SSLError) else error.strerror
            raise ConfigError(
                f"{network.ca} cannot be used: {why}",
                file=home.site_file,
                field="network.ca",
                fix="name a PEM file that can be read",
            ) from None
    return context


def _check(
    home: SiteFolder, connection: Connection, key: EllipticCurvePrivateKey, certificate: x509.Certificate
) -> None:
    """Raises :class:`ProvisionError` where the files do not belong together; the time is judged elsewhere."""
    authority = identity.load_certificate(home.authority_file)
    if identity.fingerprint(authority) != connection.fingerprint:
        raise ProvisionError(
            f"{home.authority_file}: is not the authority whose fingerprint is in {home.connection_file.name}\n"
            "  fix: open the coordinator's kit again: fedmed site init KIT"
        )
    if identity.public_bytes(identity.public_key(certificate)) != identity.public_bytes(key.public_key()):
        raise ProvisionError(
            f"{home.certificate_file}: is for another key than {home.key_file.name}\n"
            "  fix: restore the key from a backup, or install the answer to this site's own request"
        )
    wrong = check_certificate(certificate, authority, connection.site, now=certificate.not_valid_before_utc)
    if wrong:
        raise ProvisionError(
            f"{home.certificate_file}: {wrong}\n  fix: ask the coordinator for the answer to {home.request_file.name}"
        )
