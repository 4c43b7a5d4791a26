"""Keys and certificates: readable by their owner alone, never overwritten, refused in one sentence when they are wrong."""

from __future__ import annotations

import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fedmed_common import identity
from fedmed_common.enrolment import subject
from fedmed_common.errors import ProvisionError

START = datetime(2025, 3, 1, 9, 0, tzinfo=UTC)


def _certificate(days: int = 90) -> x509.Certificate:
    key = identity.new_key()
    name = subject("Trial", "north")
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(START).not_valid_after(START + timedelta(days=days))
    return builder.sign(key, hashes.SHA256())


@pytest.mark.parametrize("kind", ["tls", "signing"])
def test_a_key_survives_its_file_and_only_its_owner_reads_it(kind: str, tmp_path: Path) -> None:
    file = tmp_path / "a.key"
    if kind == "tls":
        key = identity.new_key()
        identity.save_key(file, key)
        assert identity.load_key(file).private_numbers() == key.private_numbers()
    else:
        signing = identity.new_signing_key()
        identity.save_key(file, signing)
        assert identity.load_signing_key(file).private_bytes_raw() == signing.private_bytes_raw()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("links", [True, False])
def test_a_key_is_never_overwritten(links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_path: Path, _target: Path) -> None:
        raise PermissionError(1, "Operation not permitted")

    if not links:
        monkeypatch.setattr(Path, "hardlink_to", refuse)
    file = tmp_path / "a.key"
    identity.save_key(file, identity.new_key())
    before = file.read_bytes()
    with pytest.raises(ProvisionError, match="not overwritten"):
        identity.save_key(file, identity.new_key())
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]


def test_a_key_of_another_kind_is_refused(tmp_path: Path) -> None:
    other = ec.generate_private_key(ec.SECP384R1())
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    (tmp_path / "p384").write_bytes(other.private_bytes(encoding, form, serialization.NoEncryption()))
    identity.save_key(tmp_path / "p256", identity.new_key())
    identity.save_key(tmp_path / "ed25519", identity.new_signing_key())
    (tmp_path / "locked").write_bytes(
        other.private_bytes(encoding, form, serialization.BestAvailableEncryption(b"secret"))
    )
    (tmp_path / "text").write_text("no key")
    for name in ("p384", "ed25519", "locked", "text", "missing"):
        with pytest.raises(ProvisionError, match=f"{name}: .*\n  fix: "):
            identity.load_key(tmp_path / name)
    for name in ("p256", "text"):
        with pytest.raises(ProvisionError, match=f"{name}: .*\n  fix: "):
            identity.load_signing_key(tmp_path / name)


def test_a_certificate_survives_its_text_and_is_known_by_its_fingerprint(tmp_path: Path) -> None:
    certificate = _certificate()
    (tmp_path / "a.pem").write_text(identity.certificate_text(certificate))
    read = identity.load_certificate(tmp_path / "a.pem")
    assert read == certificate
    assert (
        identity.fingerprint(read)
        == identity.fingerprint(certificate)
        != identity.fingerprint(_certificate())
    )
    assert identity.common_name(read.subject) == "north"
    (tmp_path / "a.pem").write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    with pytest.raises(ProvisionError, match="no certificate that can be read"):
        identity.load_certificate(tmp_path / "a.pem")


@pytest.mark.parametrize(
    ("days", "left", "said"),
    [
        (0, 90, ""),
        (69, 21, ""),
        (69.5, 20, "north's certificate expires in 20 days, on 2025-05-30; renew it"),
        (88.5, 1, "north's certificate expires in 1 day, on 2025-05-30; renew it"),
        (89.5, 0, "north's certificate expires in less than a day, on 2025-05-30; renew it"),
        (90, 0, "north's certificate expired on 2025-05-30; renew it"),
        (91, -1, "north's certificate expired on 2025-05-30; renew it"),
        (
            -1,
            91,
            "north's certificate is not valid before 2025-03-01 09:00 UTC; this machine's clock says 2025-02-28 09:00 UTC",
        ),
    ],
)
def test_a_warning_comes_in_time(days: float, left: int, said: str) -> None:
    now, certificate = START + timedelta(days=days), _certificate()
    assert identity.days_left(certificate, now) == left
    assert identity.expiry_warning(certificate, "north's certificate", "renew it", now=now) == said
