"""Signatures of a secure sum: of a site's keys with its certificate, and in the sum's course with a key of its own for it."""

from __future__ import annotations

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from fedmed_common import identity
from fedmed_common.errors import FedmedError
from fedmed_common.secure.circle import Offer


def signed(
    offer: Offer, run: str, session: str, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate
) -> Offer:
    """The offer with its signature and the certificate to check it with."""
    signature = key.sign(offer.signed(run, session), ec.ECDSA(hashes.SHA256()))
    return offer.model_copy(
        update={"certificate": identity.certificate_text(certificate), "signature": signature.hex()}
    )


def is_signed(offer: Offer, run: str, session: str, authority: x509.Certificate | None = None) -> bool:
    """Whether the offer is signed for this session with a certificate in the site's name that has not ended.

    ``authority``: the consortium's, which issued it; None: whoever issued it.
    """
    try:
        certificate = identity.read_certificate(offer.certificate.encode(), offer.site)
        if authority is not None:
            certificate.verify_directly_issued_by(authority)
        if identity.certified_site(certificate) != offer.site or identity.days_left(certificate) < 0:
            return False
        signature = bytes.fromhex(offer.signature)
        message = offer.signed(run, session)
        identity.public_key(certificate).verify(signature, message, ec.ECDSA(hashes.SHA256()))
    except (ValueError, TypeError, InvalidSignature, FedmedError):
        return False
    return True


def sign_key_of(private: bytes) -> str:
    """The public key of the 32 bytes with which a site signs in one sum."""
    return Ed25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw().hex()


def sign(private: bytes, message: bytes) -> str:
    """The signature of what a site says in a sum's course."""
    return Ed25519PrivateKey.from_private_bytes(private).sign(message).hex()


def is_said(offer: Offer, message: bytes, signature: str | None) -> bool:
    """Whether the site that made the offer has signed it."""
    try:
        key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(offer.sign_key))
        key.verify(bytes.fromhex(signature or ""), message)
    except (ValueError, InvalidSignature):
        return False
    return True
