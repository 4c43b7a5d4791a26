"""The registry: which site has which certificate, and which are revoked. Provisioning writes it; the server reads it."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

from fedmed_common import identity
from fedmed_common.errors import ProvisionError
from fedmed_common.files import write_atomically

VERSION = 1
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class RegisteredSite:
    """A site that may connect, or may no longer. ``revoked``: since when, in ISO form; empty while it may."""

    name: str
    certificate: x509.Certificate
    revoked: str = ""

    @property
    def public_key(self) -> EllipticCurvePublicKey:
        """The key that the site signs its requests with."""
        return identity.public_key(self.certificate)


def load_registry(path: Path) -> dict[str, RegisteredSite]:
    """All sites that were ever certified, by name.

    Raises:
        ProvisionError: the file is missing, or is not a registry.
    """
    fix = "restore it from a backup; 'fedmed provision show' tells whether it can be read"
    try:
        document: Any = json.loads(path.read_bytes())
        if document["version"] != VERSION:
            raise ProvisionError(f"{path}: version: is {document['version']}, not {VERSION}\n  fix: {fix}")
        return {name: _read_site(name, fields, path) for name, fields in document["sites"].items()}
    except OSError as error:
        raise ProvisionError(f"{path}: {error.strerror}\n  fix: {fix}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ProvisionError(f"{path}: is not a registry\n  fix: {fix}") from None


def save_registry(path: Path, sites: Mapping[str, RegisteredSite]) -> None:
    """Write the registry; a server that reads it at the same time sees the old one or the new one."""
    document = {
        "version": VERSION,
        "sites": {
            name: {"certificate": identity.certificate_text(site.certificate), "revoked": site.revoked}
            for name, site in sorted(sites.items())
        },
    }
    write_atomically(path, (json.dumps(document, indent=2) + "\n").encode())


class Revocations:
    """Which sites are revoked at this moment; the registry is read again when it changes, and its last good state holds."""

    def __init__(self, registry: Path) -> None:
        self._file = registry
        self._read: tuple[int, int, int] | None = None
        self._revoked: frozenset[str] = frozenset()

    def __call__(self, site: str) -> bool:
        """Whether the site is revoked."""
        now = mark(self._file)
        if now != self._read:
            self._read = now
            try:
                sites = load_registry(self._file)
                self._revoked = frozenset(name for name, one in sites.items() if one.revoked)
            except ProvisionError as error:
                _log.error("who was revoked before still is, and nobody else: %s", error)
        return site in self._revoked


def mark(file: Path) -> tuple[int, int, int]:
    """Changes whenever the file is replaced."""
    try:
        status = file.stat()
    except FileNotFoundError:
        return (0, 0, 0)
    return status.st_mtime_ns, status.st_ino, status.st_size


def _read_site(name: str, fields: Mapping[str, str], path: Path) -> RegisteredSite:
    certificate = identity.read_certificate(fields["certificate"].encode(), f"{path}: {name}")
    identity.public_key(certificate)
    if identity.common_name(certificate.subject) != name:
        raise ProvisionError(f"{path}: {name}: the certificate is for another name\n  fix: restore the file")
    return RegisteredSite(name=name, certificate=certificate, revoked=fields["revoked"])
