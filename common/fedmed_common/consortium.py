"""The consortium's file, which its coordinator writes, and the connection in each site's kit, which is drawn from it."""

from __future__ import annotations

import base64
import binascii
import ipaddress
import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from pydantic import Field, field_validator, model_validator

from fedmed_common.errors import ConfigError
from fedmed_common.fields import Model, Name
from fedmed_common.loading import load_file, validate

Title = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f]{1,64}$")]
Contact = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f]{0,200}$")]
Days = Annotated[int, Field(ge=1, le=36_500)]
_LABEL = r"(?!-)[A-Za-z0-9_\-]{1,63}(?<!-)"
_DNS = re.compile(rf"^(?=.{{1,253}}$){_LABEL}(?:\.{_LABEL})*$")


class Coordinator(Model):
    """Who runs the federation, and where its server is reached."""

    address: str = Field(description="host:port that sites connect to, as seen from a hospital")
    names: tuple[str, ...] = Field((), description="further DNS names and IP addresses of the server")
    contact: Contact = Field("", description="whom a hospital calls; printed on the page for its IT")

    @field_validator("address")
    @classmethod
    def _is_an_address(cls, address: str) -> str:
        split_address(address)
        return address

    @field_validator("names")
    @classmethod
    def _are_hosts(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if not _is_host(name):
                raise ValueError(f"'{name}' is neither a DNS name nor an IP address")
        return names

    @property
    def host(self) -> str:
        """The address without its port."""
        return split_address(self.address)[0]

    @property
    def port(self) -> int:
        """The address's port."""
        return split_address(self.address)[1]


class ConsortiumSite(Model):
    """A hospital that takes part. ``contact``: whom the coordinator calls there."""

    name: Name
    contact: Contact = ""


class Certificates(Model):
    """For how many days certificates are issued, and how many before their end a warning begins."""

    authority_days: Days = 3650
    server_days: Days = 365
    site_days: Days = 90
    warn_days: Days = 21

    @model_validator(mode="after")
    def _warns_in_time(self) -> Self:
        if self.warn_days >= min(self.server_days, self.site_days):
            raise ValueError(
                "warn_days must be less than server_days and site_days, or the warning never ends"
            )
        return self


class Consortium(Model):
    """``consortium.toml``: who takes part, and where they meet."""

    name: Title
    coordinator: Coordinator
    sites: tuple[ConsortiumSite, ...] = Field(min_length=1)
    certificates: Certificates = Certificates()

    @field_validator("sites")
    @classmethod
    def _distinct(cls, sites: tuple[ConsortiumSite, ...]) -> tuple[ConsortiumSite, ...]:
        seen = {"server"}  # what 'fedmed provision renew' calls the coordinator's own certificate
        for site in sites:
            # Kits and answers are files named after sites, and not every file system tells cases apart.
            if site.name.casefold() in seen:
                raise ValueError(f"the name '{site.name}' is taken; upper and lower case count as the same")
            seen.add(site.name.casefold())
        return sites

    @property
    def names(self) -> tuple[str, ...]:
        """The sites' names, in the file's order."""
        return tuple(site.name for site in self.sites)


class Connection(Model):
    """``connection.json``: what a site must know of its coordinator. It holds no secret.

    ``fingerprint``: SHA-256 of the authority's certificate, in hex. ``signer``: the raw Ed25519 public key, in base64, with
    which the coordinator signs what sites are to carry out.
    """

    version: Literal[1] = 1
    consortium: Title
    site: Name
    address: str
    fingerprint: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    signer: str
    contact: Contact = ""

    @field_validator("address")
    @classmethod
    def _is_an_address(cls, address: str) -> str:
        split_address(address)
        return address

    @field_validator("signer")
    @classmethod
    def _is_a_key(cls, signer: str) -> str:
        try:
            length = len(base64.b64decode(signer, validate=True))
        except binascii.Error:
            length = 0
        if length != 32:
            raise ValueError("is not an Ed25519 public key in base64")
        return signer

    @property
    def host(self) -> str:
        """The coordinator's host."""
        return split_address(self.address)[0]

    @property
    def port(self) -> int:
        """The coordinator's port."""
        return split_address(self.address)[1]

    def signer_key(self) -> Ed25519PublicKey:
        """The key that a bundle's signature is checked with."""
        return Ed25519PublicKey.from_public_bytes(base64.b64decode(self.signer))


def load_consortium(path: Path) -> Consortium:
    """Read a ``consortium.toml``.

    Raises:
        ConfigError: names the file, the field and the fix.
    """
    return load_file(Consortium, path)


def load_connection(path: Path) -> Connection:
    """Read a ``connection.json``.

    Raises:
        ConfigError: names the file, the field and the fix.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise ConfigError(
            "no such file, so this folder is not a site's home yet",
            file=path,
            fix="fedmed site init KIT --home FOLDER, or name the right folder with --home",
        ) from None
    except OSError as error:
        raise ConfigError(
            f"cannot be read: {error.strerror}", file=path, fix="check the file's permissions"
        ) from None
    return read_connection(content, path)


def read_connection(content: bytes, source: Path | str) -> Connection:
    """The connection in JSON text; ``source`` says in an error where the text is from.

    Raises:
        ConfigError: names the source, the field and the fix.
    """
    try:
        document: Any = json.loads(content)
    except ValueError:
        document = None
    if not isinstance(document, dict):
        raise ConfigError("is not a JSON object", file=source, fix="restore the file from the kit")
    return validate(Connection, document, source)


def split_address(address: str) -> tuple[str, int]:
    """Host and port of ``host:port``; an IPv6 address stands in brackets.

    Raises:
        ValueError: the text is no such address.
    """
    host, colon, port = address.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    host = host[1:-1] if bracketed else host
    if not colon or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65_536:
        raise ValueError("is not of the form host:port, as in fedmed.example.org:9443")
    if not _is_host(host) or bracketed != (":" in host):
        raise ValueError(f"'{host}' is neither a DNS name nor an IP address")
    return host, int(port)


def _is_host(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return bool(_DNS.match(name)) and not name.rpartition(".")[2].isdigit()
    return True
