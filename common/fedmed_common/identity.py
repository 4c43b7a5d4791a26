"""Keys and certificates of a consortium, and their files: made, kept and read.

A site and the server each hold an EC P-256 key, made where it is used. The consortium's own authority certifies it for a
limited time. What the coordinator has sites carry out is signed with an Ed25519 key of its own.
"""

from __future__ import annotations

import os
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.x509.oid import NameOID

from fedmed_common.errors import ProvisionError
from fedmed_common.files import sync_folder

WARN_DAYS = 21
"""Days before its end from which a certificate is warned about, where the consortium's file says nothing else."""

PrivateKey = ec.EllipticCurvePrivateKey | Ed25519PrivateKey
PublicKey = ec.EllipticCurvePublicKey | Ed25519PublicKey


def new_key() -> ec.EllipticCurvePrivateKey:
    """A new key for TLS and for signed requests, of a site, a server or an authority."""
    return ec.generate_private_key(ec.SECP256R1())


def new_signing_key() -> Ed25519PrivateKey:
    """A new key for what the coordinator has sites carry out."""
    return Ed25519PrivateKey.generate()


def save_key(path: Path, key: PrivateKey) -> None:
    """Write a private key that only its owner can read; a file that is there stays as it is.

    Raises:
        ProvisionError: there is a file already.
    """
    content = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    write_secret(path, content)


def write_secret(path: Path, content: bytes) -> None:
    """Write a file that only its owner can read, whole or not at all; a file that is there stays as it is.

    Raises:
        ProvisionError: there is a file already.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with suppress(FileNotFoundError):
        temporary.unlink()
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        _put(temporary, path)
    except FileExistsError:
        raise ProvisionError(
            f"{path}: is there already, and is not overwritten\n"
            "  fix: move it away first, if it is to be replaced"
        ) from None
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def load_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """The P-256 key in a file.

    Raises:
        ProvisionError: there is none that can be used.
    """
    key = _load_private(path)
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not is_usual(key.public_key()):
        raise ProvisionError(f"{path}: holds a key that is not a P-256 key\n  fix: restore it from a backup")
    return key


def load_signing_key(path: Path) -> Ed25519PrivateKey:
    """The Ed25519 key in a file.

    Raises:
        ProvisionError: there is none that can be used.
    """
    key = _load_private(path)
    if not isinstance(key, Ed25519PrivateKey):
        raise ProvisionError(
            f"{path}: holds a key that is not an Ed25519 key\n  fix: restore it from a backup"
        )
    return key


def load_certificate(path: Path) -> x509.Certificate:
    """The certificate in a file.

    Raises:
        ProvisionError: there is none that can be read.
    """
    return read_certificate(_read(path), path)


def read_certificate(content: bytes, source: Path | str) -> x509.Certificate:
    """The certificate in PEM text; ``source`` says in an error where the text is from.

    Raises:
        ProvisionError: the text is none.
    """
    try:
        return x509.load_pem_x509_certificate(content)
    except (ValueError, UnsupportedAlgorithm):
        raise ProvisionError(
            f"{source}: holds no certificate that can be read\n  fix: restore it as it was sent"
        ) from None


def certificate_text(certificate: x509.Certificate) -> str:
    """The certificate as PEM."""
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def fingerprint(certificate: x509.Certificate) -> str:
    """SHA-256 over the whole certificate, in hex: what two people compare by telephone."""
    return certificate.fingerprint(hashes.SHA256()).hex()


def key_fingerprint(key: PublicKey) -> str:
    """SHA-256 over a public key, in hex."""
    digest = hashes.Hash(hashes.SHA256())
    digest.update(public_bytes(key))
    return digest.finalize().hex()


def public_bytes(key: PublicKey) -> bytes:
    """A public key as DER, to compare keys by."""
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def is_usual(key: object) -> bool:
    """Whether a public key is of the one kind that certificates here are made for."""
    return isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1)


def public_key(certificate: x509.Certificate) -> ec.EllipticCurvePublicKey:
    """The P-256 key that a certificate is for.

    Raises:
        ProvisionError: its key is of another kind.
    """
    key = certificate.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or not is_usual(key):
        raise ProvisionError(
            "the certificate's key is not a P-256 key\n  fix: have the certificate issued again"
        )
    return key


def common_name(name: x509.Name) -> str:
    """The name in a certificate's subject; empty where there is not exactly one."""
    found = name.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(found[0].value) if len(found) == 1 else ""


def site_uri(site: str) -> x509.UniformResourceIdentifier:
    """A site's name in its certificate, which no server's certificate has."""
    return x509.UniformResourceIdentifier(f"urn:fedmed:site:{site}")


def certified_site(certificate: x509.Certificate) -> str:
    """The site that a certificate is of; empty for a server's."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ""
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    prefix = site_uri("").value
    return uris[0].removeprefix(prefix) if len(uris) == 1 and uris[0].startswith(prefix) else ""


def days_left(certificate: x509.Certificate, now: datetime | None = None) -> int:
    """Whole days until the certificate ends; negative once it has."""
    return (certificate.not_valid_after_utc - (now or datetime.now(UTC))).days


def expiry_warning(
    certificate: x509.Certificate,
    whose: str,
    fix: str,
    *,
    warn_days: int = WARN_DAYS,
    now: datetime | None = None,
) -> str:
    """A sentence where a certificate has ended, is not valid yet or ends within ``warn_days``; else nothing."""
    moment = now or datetime.now(UTC)
    ends = certificate.not_valid_after_utc
    if moment < certificate.not_valid_before_utc:
        begins = f"{certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC"
        return f"{whose} is not valid before {begins}; this machine's clock says {moment:%Y-%m-%d %H:%M} UTC"
    if moment >= ends:
        return f"{whose} expired on {ends:%Y-%m-%d}; {fix}"
    left = days_left(certificate, moment)
    if left < warn_days:
        days = "in less than a day" if left == 0 else f"in {left} day{'' if left == 1 else 's'}"
        return f"{whose} expires {days}, on {ends:%Y-%m-%d}; {fix}"
    return ""


def _load_private(path: Path) -> object:
    try:
        return serialization.load_pem_private_key(_read(path), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise ProvisionError(
            f"{path}: holds no private key that can be read\n  fix: restore it from a backup"
        ) from None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ProvisionError(f"{path}: {error.strerror}\n  fix: check the path and its permissions") from None


def _put(temporary: Path, path: Path) -> None:
    """Give a file its name where that is free. A link, unlike a rename, fails where it is taken; not every disk has links."""
    try:
        path.hardlink_to(temporary)
    except FileExistsError:
        raise
    except OSError:
        if path.exists():
            raise FileExistsError(path) from None
        temporary.replace(path)
