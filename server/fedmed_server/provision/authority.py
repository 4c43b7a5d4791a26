"""The consortium's own certificate authority: what it certifies, for how long and for what use."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedmed_common import identity
from fedmed_common.consortium import Consortium
from fedmed_common.enrolment import subject
from fedmed_common.errors import ProvisionError

BACKDATED = timedelta(hours=1)
"""Certificates begin this long before they are made, for machines whose clocks are behind."""

_ALWAYS = ("localhost", "127.0.0.1")
"""Names of every server, so that the coordinator's own machine can check it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Authority:
    """A key and the certificate that sites trust."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    def certify_server(
        self, consortium: Consortium, key: ec.EllipticCurvePublicKey, *, now: datetime | None = None
    ) -> x509.Certificate:
        """A certificate for the coordinator's server, under all of its names."""
        names = server_names(consortium)
        days = consortium.certificates.server_days
        builder = self._leaf(subject(consortium.name, consortium.coordinator.host[:64]), key, days, now)
        builder = builder.add_extension(
            x509.SubjectAlternativeName([general_name(name) for name in names]), False
        )
        return self._signed(builder, ExtendedKeyUsageOID.SERVER_AUTH)

    def certify_site(
        self,
        consortium: Consortium,
        site: str,
        key: ec.EllipticCurvePublicKey,
        *,
        now: datetime | None = None,
    ) -> x509.Certificate:
        """A certificate for a site, which can only be a client with it."""
        name = identity.site_uri(site)
        days = consortium.certificates.site_days
        builder = self._leaf(subject(consortium.name, site), key, days, now)
        builder = builder.add_extension(x509.SubjectAlternativeName([name]), False)
        return self._signed(builder, ExtendedKeyUsageOID.CLIENT_AUTH)

    def _leaf(
        self, name: x509.Name, key: ec.EllipticCurvePublicKey, days: int, now: datetime | None
    ) -> x509.CertificateBuilder:
        moment = now or datetime.now(UTC)
        end = min(moment + timedelta(days=days), self.certificate.not_valid_after_utc)
        if end <= moment:
            raise ProvisionError(
                f"the consortium's authority expired on {self.certificate.not_valid_after_utc:%Y-%m-%d}\n"
                "  fix: make a new consortium in a new folder, and send its kits to the sites"
            )
        return (
            _certificate(name, key, moment, end)
            .issuer_name(self.certificate.subject)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), True)
            .add_extension(_key_usage(signs_certificates=False), True)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), False)
        )

    def _signed(self, builder: x509.CertificateBuilder, use: x509.ObjectIdentifier) -> x509.Certificate:
        return builder.add_extension(x509.ExtendedKeyUsage([use]), True).sign(self.key, hashes.SHA256())


def new_authority_certificate(
    consortium: Consortium, key: ec.EllipticCurvePrivateKey, *, now: datetime | None = None
) -> x509.Certificate:
    """The certificate of a new authority, by which it certifies itself."""
    name = subject(consortium.name, "fedmed certificate authority")
    moment = now or datetime.now(UTC)
    end = moment + timedelta(days=consortium.certificates.authority_days)
    return (
        _certificate(name, key.public_key(), moment, end)
        .issuer_name(name)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), True)
        .add_extension(_key_usage(signs_certificates=True), True)
        .sign(key, hashes.SHA256())
    )


def organization(certificate: x509.Certificate) -> str:
    """The consortium that a certificate is of."""
    return str(certificate.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)[0].value)


def server_names(consortium: Consortium) -> tuple[str, ...]:
    """All names under which the server is reached, each once."""
    coordinator = consortium.coordinator
    return tuple(dict.fromkeys((coordinator.host, *coordinator.names, *_ALWAYS)))


def certified_names(certificate: x509.Certificate) -> tuple[str, ...]:
    """The names that a server's certificate is for."""
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return tuple(str(name.value) for name in names)


def general_name(name: str) -> x509.GeneralName:
    """A DNS name or an IP address as certificates have it."""
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def same_names(one: Sequence[str], other: Sequence[str]) -> bool:
    """Whether two lists of names are for the same hosts, in whatever order."""
    return {general_name(name) for name in one} == {general_name(name) for name in other}


def _certificate(
    name: x509.Name, key: ec.EllipticCurvePublicKey, moment: datetime, end: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(moment - BACKDATED)
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), False)
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )
