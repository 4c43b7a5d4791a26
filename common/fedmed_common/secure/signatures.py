"""Whether a site's keys for a secure sum are signed with its certificate: sites ask it of each other, and the server of all."""

from __future__ import annotations

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

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
