"""How a site gets its certificate: the request that leaves it, and the answer that comes back. Neither holds a secret.

A request carries a certificate signing request, which shows that the site has the private key, and a proof that it is the
site it says: the kit's secret over it, or, once the site is registered, the signature of its present key.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from pydantic import Field

from fedmed_common import identity
from fedmed_common.consortium import Connection, Title
from fedmed_common.errors import ConfigError, ProvisionError
from fedmed_common.fields import Model, Name
from fedmed_common.loading import validate

Pem = Annotated[str, Field(max_length=20_000)]
D = TypeVar("D", bound=Model)
_ECDSA = ec.ECDSA(hashes.SHA256())


class Request(Model):
    """``request.json``. ``proof_by``: the kit's secret, or the key that the site is registered with."""

    version: Literal[1] = 1
    consortium: Title
    site: Name
    csr: Pem
    proof_by: Literal["kit", "key"]
    proof: Annotated[str, Field(max_length=200)]

    def text(self) -> bytes:
        """As it is written to a file."""
        return (self.model_dump_json(indent=2) + "\n").encode()


class Answer(Model):
    """``SITE.answer.json``: the site's certificate."""

    version: Literal[1] = 1
    consortium: Title
    site: Name
    certificate: Pem

    def text(self) -> bytes:
        """As it is written to a file."""
        return (self.model_dump_json(indent=2) + "\n").encode()


def subject(consortium: str, name: str) -> x509.Name:
    """The subject of a certificate: who it is for, and in which consortium."""
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, consortium),
            x509.NameAttribute(NameOID.COMMON_NAME, name),
        ]
    )


def request_with_kit(connection: Connection, key: ec.EllipticCurvePrivateKey, secret: bytes) -> Request:
    """The first request of a site, proved by its kit."""
    csr = _csr(connection, key)
    return _request(
        connection, csr, "kit", _kit_proof(secret, _claim(connection.consortium, connection.site, csr))
    )


def request_with_key(
    connection: Connection, key: ec.EllipticCurvePrivateKey, present: ec.EllipticCurvePrivateKey
) -> Request:
    """A request for a new key, proved by the present one."""
    csr = _csr(connection, key)
    signature = present.sign(_claim(connection.consortium, connection.site, csr), _ECDSA)
    return _request(connection, csr, "key", base64.b64encode(signature).decode())


def load_request(path: Path) -> Request:
    """Read a request.

    Raises:
        ConfigError: the file is none.
    """
    return _load(Request, path, "the request.json that the site sent")


def load_answer(path: Path) -> Answer:
    """Read an answer.

    Raises:
        ConfigError: the file is none.
    """
    return _load(Answer, path, "the .answer.json file that the coordinator sent")


def requested_key(request: Request, path: Path) -> ec.EllipticCurvePublicKey:
    """The P-256 key that the request is for: its owner signed the CSR, which has the name that the request is for.

    Raises:
        ProvisionError: it is not so.
    """
    try:
        csr = x509.load_pem_x509_csr(request.csr.encode())
        key = csr.public_key() if csr.is_signature_valid else None
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not identity.is_usual(key):
        raise ProvisionError(
            f"{path}: csr: is not a signing request by a P-256 key\n"
            "  fix: ask the site for its request.json as it was made"
        )
    name = identity.common_name(csr.subject)
    if name != request.site:
        raise ProvisionError(
            f"{path}: csr: is for '{name}', but the request is for '{request.site}'\n"
            "  fix: do not sign it; ask the site for its request.json as it was made"
        )
    return key


def is_proved(request: Request, secret: bytes, registered: ec.EllipticCurvePublicKey | None) -> bool:
    """Whether the request's proof holds: against the secret of the site's kit, or against its registered key."""
    claim = _claim(request.consortium, request.site, x509.load_pem_x509_csr(request.csr.encode()))
    if request.proof_by == "kit":
        return hmac.compare_digest(_kit_proof(secret, claim).encode(), request.proof.encode())
    if registered is None:
        return False
    try:
        registered.verify(base64.b64decode(request.proof), claim, _ECDSA)
    except (InvalidSignature, ValueError):
        return False
    return True


def check_certificate(
    certificate: x509.Certificate, authority: x509.Certificate, site: str, *, now: datetime | None = None
) -> str:
    """Why the certificate is not one that ``authority`` made for ``site`` and that is valid now; empty where it is."""
    moment = now or datetime.now(UTC)
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return "is not from this consortium's authority"
    name = identity.common_name(certificate.subject)
    if name != site:
        return f"is for the site '{name}', and this is '{site}'"
    if not _is_for_clients(certificate):
        return "is not a certificate for a site"
    if moment >= certificate.not_valid_after_utc:
        return f"expired on {certificate.not_valid_after_utc:%Y-%m-%d}"
    if moment < certificate.not_valid_before_utc:
        return f"is not valid before {certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC; is this machine's clock right?"
    return ""


def _is_for_clients(certificate: x509.Certificate) -> bool:
    try:
        usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except (x509.ExtensionNotFound, ValueError):
        return False
    return ExtendedKeyUsageOID.CLIENT_AUTH in usage


def _csr(connection: Connection, key: ec.EllipticCurvePrivateKey) -> x509.CertificateSigningRequest:
    builder = x509.CertificateSigningRequestBuilder().subject_name(
        subject(connection.consortium, connection.site)
    )
    return builder.sign(key, hashes.SHA256())


def _claim(consortium: str, site: str, csr: x509.CertificateSigningRequest) -> bytes:
    digest = hashlib.sha256(csr.public_bytes(serialization.Encoding.DER)).hexdigest()
    return "\n".join(("fedmed enrolment 1", consortium, site, digest)).encode()


def _kit_proof(secret: bytes, claim: bytes) -> str:
    return hmac.new(secret, claim, hashlib.sha256).hexdigest()


def _request(
    connection: Connection, csr: x509.CertificateSigningRequest, by: Literal["kit", "key"], proof: str
) -> Request:
    return Request(
        consortium=connection.consortium,
        site=connection.site,
        csr=csr.public_bytes(serialization.Encoding.PEM).decode(),
        proof_by=by,
        proof=proof,
    )


def _load(model: type[D], path: Path, what: str) -> D:
    fix = f"name {what}"
    try:
        document: Any = json.loads(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", file=path, fix=fix) from None
    except ValueError:
        document = None
    if not isinstance(document, dict):
        raise ConfigError("is not a JSON object", file=path, fix=fix)
    return validate(model, document, path)
