"""A site's kit: the one file that a coordinator sends a hospital, as it is packed and as it is checked.

A kit is a zip of a few known files. ``manifest.json`` has their digests, and ``manifest.sig`` is the authority's signature
over it, so whoever knows the authority's fingerprint can trust every byte. A kit holds no private key. Its
``enrolment.secret`` shows that a request to be certified comes from whom the kit was sent to.
"""

from __future__ import annotations

import hashlib
import io
import json
import lzma
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from fedmed_common import identity
from fedmed_common.consortium import Connection, read_connection
from fedmed_common.errors import ProvisionError

VERSION = 1
AUTHORITY, CONNECTION, SITE, PAGE, SECRET = (
    "ca.pem",
    "connection.json",
    "site.toml",
    "for-it.html",
    "enrolment.secret",
)
FILES = (AUTHORITY, CONNECTION, SITE, PAGE, SECRET)
"""What a kit holds beside its manifest."""

_MANIFEST, _SIGNATURE = "manifest.json", "manifest.sig"
_LARGEST_FILE = 1_000_000
_DATE = (2024, 1, 1, 0, 0, 0)
_UNREADABLE = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    NotImplementedError,
    RuntimeError,
    ValueError,
    EOFError,
)
_ECDSA = ec.ECDSA(hashes.SHA256())


@dataclass(frozen=True, slots=True, kw_only=True)
class Kit:
    """A kit whose signature holds. ``files``: their contents by name."""

    connection: Connection
    authority: x509.Certificate
    files: Mapping[str, bytes]


def pack(files: Mapping[str, bytes], key: ec.EllipticCurvePrivateKey) -> bytes:
    """A kit of the files that :data:`FILES` names, signed with the authority's key."""
    manifest = manifest_of(files)
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in {**files, _MANIFEST: manifest, _SIGNATURE: key.sign(manifest, _ECDSA)}.items():
            entry = zipfile.ZipInfo(name, _DATE)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o600 << 16
            archive.writestr(entry, data)
    return content.getvalue()


def manifest_of(files: Mapping[str, bytes]) -> bytes:
    """What a kit's signature is over."""
    digests = {name: hashlib.sha256(files[name]).hexdigest() for name in FILES}
    return json.dumps({"version": VERSION, "files": digests}, indent=2).encode()


def open_kit(path: Path, *, fingerprint: str = "") -> Kit:
    """Read a kit and check it. ``fingerprint``, where given, is that of the authority, as its coordinator told it.

    Raises:
        ProvisionError: the file is no kit, was changed after it was signed, or is of another authority.
    """
    files = _unzipped(path)
    authority = identity.read_certificate(files[AUTHORITY], f"{path}: {AUTHORITY}")
    _check_authority(path, authority, fingerprint)
    try:
        identity.public_key(authority).verify(files[_SIGNATURE], files[_MANIFEST], _ECDSA)
    except InvalidSignature:
        raise _changed(path, _MANIFEST) from None
    for name, digest in _digests(path, files[_MANIFEST]).items():
        if hashlib.sha256(files[name]).hexdigest() != digest:
            raise _changed(path, name)
    connection = read_connection(files[CONNECTION], f"{path}: {CONNECTION}")
    if connection.fingerprint != identity.fingerprint(authority):
        raise _changed(path, CONNECTION)
    return Kit(
        connection=connection,
        authority=authority,
        files={name: files[name] for name in FILES},
    )


def same_fingerprint(given: str, certificate: x509.Certificate) -> bool:
    """Whether a fingerprint as people write it down, with colons, blanks or capitals, is the certificate's."""
    return "".join(given.split()).replace(":", "").lower() == identity.fingerprint(certificate)


def _unzipped(path: Path) -> dict[str, bytes]:
    known = {*FILES, _MANIFEST, _SIGNATURE}
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            names = [entry.filename for entry in entries]
            if len(names) != len(known) or set(names) != known:
                wrong = sorted(set(names) ^ known)
                raise _not_a_kit(path, f"it does not hold exactly a kit's files: {', '.join(wrong[:5])}")
            return {entry.filename: _inflated(path, archive, entry) for entry in entries}
    except OSError as error:
        if error.errno is None:  # of a decompressor
            raise _not_a_kit(path, "it cannot be read as a zip file") from None
        raise ProvisionError(f"{path}: {error.strerror}\n  fix: check the path to the kit") from None
    except _UNREADABLE:
        raise _not_a_kit(path, "it cannot be read as a zip file") from None


def _inflated(path: Path, archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    with archive.open(entry) as stream:
        content = stream.read(_LARGEST_FILE + 1)
    if len(content) > _LARGEST_FILE:
        raise _not_a_kit(path, f"{entry.filename} is too large")
    return content


def _check_authority(path: Path, authority: x509.Certificate, fingerprint: str) -> None:
    if fingerprint and not same_fingerprint(fingerprint, authority):
        raise ProvisionError(
            f"{path}: the kit is of an authority with the fingerprint {identity.fingerprint(authority)}, not of the one given\n"
            "  fix: do not use this kit; ask your coordinator, by telephone, for the fingerprint and for a new kit"
        )
    try:
        authority.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        raise _changed(path, AUTHORITY) from None
    if datetime.now(UTC) >= authority.not_valid_after_utc:
        raise ProvisionError(
            f"{path}: the consortium's authority expired on {authority.not_valid_after_utc:%Y-%m-%d}\n"
            "  fix: ask your coordinator for a new kit; if that date is still to come, correct this machine's clock"
        )


def _digests(path: Path, manifest: bytes) -> dict[str, str]:
    document: Any = json.loads(manifest)
    if document["version"] != VERSION or set(document["files"]) != set(FILES):
        raise _not_a_kit(path, "its manifest is of another version of fedmed")
    return dict(document["files"])


def _not_a_kit(path: Path, why: str) -> ProvisionError:
    return ProvisionError(
        f"{path}: is not a site kit of this version: {why}\n  fix: use the .zip file as it was sent"
    )


def _changed(path: Path, name: str) -> ProvisionError:
    return ProvisionError(
        f"{path}: {name}: was changed after the kit was signed\n  fix: do not use this kit; ask your coordinator for a new one"
    )
