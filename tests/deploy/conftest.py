"""The tools that the tests of deploy/ run, and a small authority whose certificates they use."""

from __future__ import annotations

import ipaddress
import shutil
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedmed_common import identity

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
NAME = "fedmed.example.org"


def tool(name: str) -> str:
    """A program that the ``dev`` extra installs, or the machine has; the test is skipped where there is none."""
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.is_file() else shutil.which(name)
    if found is None:
        pytest.skip(f"'{name}' is not installed")
    return found


def output(*command: str | Path, **settings: str) -> str:
    """What a command printed; the test fails with its words where it ends with an error."""
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


@dataclass(frozen=True, kw_only=True)
class Certificates:
    """PEM files as a server's ``tls/`` has them, with a member's and a stranger's certificate and key beside them."""

    folder: Path

    def pair(self, name: str) -> tuple[str, str]:
        """Certificate and key."""
        return str(self.folder / f"{name}.pem"), str(self.folder / f"{name}.key")


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    folder = tmp_path_factory.mktemp("tls")
    ours, theirs = identity.new_key(), identity.new_key()
    for name, authority in (("ca", ours), ("other-ca", theirs)):
        _certify(folder / f"{name}.pem", authority.public_key(), authority, authority=True)
    for name, authority in (("server", ours), ("member", ours), ("stranger", theirs)):
        key = identity.new_key()
        identity.save_key(folder / f"{name}.key", key)
        _certify(folder / f"{name}.pem", key.public_key(), authority)
    return Certificates(folder=folder)


def _certify(
    path: Path, key: ec.EllipticCurvePublicKey, signer: ec.EllipticCurvePrivateKey, *, authority: bool = False
) -> None:
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "authority")])
    subject = issuer if authority else x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, path.stem)])
    names = [x509.DNSName(NAME), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    uses = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
    )
    if not authority:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        builder = builder.add_extension(x509.ExtendedKeyUsage(uses), critical=False)
    path.write_bytes(identity.certificate_text(builder.sign(signer, hashes.SHA256())).encode())
