"""What a site adds to every request: who asks, and a signature over all of it, so that nothing on the way can alter or repeat it.

The signature (ECDSA with SHA-256, the key of the site's certificate) covers method, path, body and every field of the
:class:`Stamp`. The server refuses with status 403, or 404 for a path it does not serve and 413 for a body that is too
large, and one of ``REFUSALS`` in the header ``fedmed-refusal``; its clock and version are in two more headers. Whatever else
it answers, ``fedmed-interval`` says how many seconds a site is to leave between two questions.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from fedmed_common.errors import RequestRefused

REFUSALS = (
    "unregistered",
    "revoked",
    "signature",
    "replayed",
    "clock",
    "version",
    "in-use",
    "another-node",
    "too-large",
    "unknown-path",
    "not-asked",
    "digest",
    "disk",
)
"""Why a server refuses a request; ``RequestRefused.reason`` is always one of them."""

FIELDS = ("site", "version", "instance", "boot", "time", "nonce")
SIGNATURE_HEADER = "fedmed-signature"
REFUSAL_HEADER = "fedmed-refusal"
SERVER_TIME_HEADER = "fedmed-server-time"
SERVER_VERSION_HEADER = "fedmed-server-version"
INTERVAL_HEADER = "fedmed-interval"

_SCHEME = b"fedmed-1"
_FORMS = {
    "site": re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]{0,63}"),
    "version": re.compile(r"[0-9A-Za-z.+\-]{1,32}"),
    "instance": re.compile(r"[0-9a-f]{1,64}"),
    "boot": re.compile(r"[0-9a-f]{1,64}"),
    "time": re.compile(r"[0-9]{1,12}\.[0-9]{3}"),
    "nonce": re.compile(r"[0-9a-f]{32}"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Stamp:
    """Who asks, and when. ``instance`` names the site's folder, ``boot`` one start of its link, ``nonce`` one request."""

    site: str
    version: str
    instance: str
    boot: str
    time: float
    nonce: str

    @classmethod
    def new(cls, *, site: str, instance: str, boot: str) -> Stamp:
        """A stamp of now, with a fresh nonce and the version that is installed."""
        return cls(
            site=site,
            version=installed_version(),
            instance=instance,
            boot=boot,
            time=round(time.time(), 3),
            nonce=secrets.token_hex(16),
        )


def sign(
    key: ec.EllipticCurvePrivateKey, method: str, path: str, body: bytes, stamp: Stamp
) -> dict[str, str]:
    """The headers that make a request this site's; ``path`` is without host and query."""
    values = {name: str(getattr(stamp, name)) for name in FIELDS} | {"time": f"{stamp.time:.3f}"}
    signature = key.sign(_signed(method, path, body, values), ec.ECDSA(hashes.SHA256()))
    headers = {header_of(name): value for name, value in values.items()}
    return headers | {SIGNATURE_HEADER: base64.b64encode(signature).decode()}


def read_stamp(headers: Mapping[str, str]) -> Stamp:
    """What the request says about itself, not verified yet; ``headers`` has lower-case names.

    Raises:
        RequestRefused: ``signature``: a field is missing or has another form.
    """
    values = _values(headers)
    return Stamp(**values | {"time": float(values["time"])})  # type: ignore[arg-type]


def verify(
    public_key: ec.EllipticCurvePublicKey, method: str, path: str, body: bytes, headers: Mapping[str, str]
) -> Stamp:
    """The request's stamp, when the key signed exactly this request. Whether it is fresh is the caller's to judge.

    Raises:
        RequestRefused: ``signature``.
    """
    values = _values(headers)
    try:
        signature = base64.b64decode(headers.get(SIGNATURE_HEADER, ""), validate=True)
        public_key.verify(signature, _signed(method, path, body, values), ec.ECDSA(hashes.SHA256()))
    except (InvalidSignature, binascii.Error, ValueError):
        raise RequestRefused("signature") from None
    return read_stamp(headers)


def header_of(field: str) -> str:
    """The header that carries a field of the stamp."""
    return f"fedmed-{field}"


@cache
def installed_version() -> str:
    """The version of fedmed on this machine."""
    return version("fedmed")


def works_with(one: str, other: str) -> bool:
    """Whether two versions understand each other: the first two numbers are equal."""
    return one.split(".")[:2] == other.split(".")[:2]


def _values(headers: Mapping[str, str]) -> dict[str, str]:
    values = {name: headers.get(header_of(name), "") for name in FIELDS}
    if any(_FORMS[name].fullmatch(value) is None for name, value in values.items()):
        raise RequestRefused("signature")
    return values


def _signed(method: str, path: str, body: bytes, values: Mapping[str, str]) -> bytes:
    """No part can hold a line break, so that no two requests have the same text."""
    if "\n" in method or "\n" in path:
        raise RequestRefused("signature")
    parts = (method, path, hashlib.sha256(body).hexdigest(), *(values[name] for name in FIELDS))
    return b"\n".join([_SCHEME, *(part.encode() for part in parts)])
