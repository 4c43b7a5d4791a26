"""``fedmed site receive`` as the process that a hospital runs, pushed to by others' tools."""

from __future__ import annotations

import datetime as dt
import shutil
import signal
import ssl
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pydicom
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from pynetdicom import AE

from fedmed_client.pacs.keeping import Incoming
from fedmed_simulations.rehearsal.machines import FEDMED, free_ports

from .conftest import write_series

SITE = """
name = "north"
[data]
format = "dicom"
root = "."
[labels]
liver = ["Liver"]
[limits]
least_free_gb = 0.0
[pacs]
host = "127.0.0.1"
own_port = {port}
{more}
"""


@contextmanager
def _receiving(home: Path, *options: str, more: str = "") -> Iterator[int]:
    """The port at which a receiver listens; it is stopped as an operator stops it."""
    (port,) = free_ports(1)
    home.mkdir(exist_ok=True)
    (home / "site.toml").write_text(SITE.format(port=port, more=more))
    command = [*FEDMED, "site", "receive", str(home / "in"), "--home", str(home), *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        assert "listens at" in process.stdout.readline()
        yield port
    finally:
        process.send_signal(signal.SIGTERM)
        said, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and "stopped" in said


def test_what_dcmtk_pushes_is_kept_whole(tmp_path: Path) -> None:
    program = shutil.which("storescu")
    if program is None:
        pytest.skip("no other client: apt-get install dcmtk")
    files = write_series(tmp_path / "out", 3)
    with _receiving(tmp_path / "home") as port:
        subprocess.run([program, "-aec", "FEDMED", "127.0.0.1", str(port), *map(str, files)], check=True)
        kept = sorted((tmp_path / "home" / "in").rglob("*.dcm"))
    assert len(kept) == 3
    pixels = {pydicom.dcmread(file).SOPInstanceUID: pydicom.dcmread(file).PixelData for file in kept}
    assert pixels == {pydicom.dcmread(file).SOPInstanceUID: pydicom.dcmread(file).PixelData for file in files}


def test_only_copies_without_the_patient_are_kept_where_asked(tmp_path: Path) -> None:
    pytest.importorskip("rapidocr", reason="pip install 'fedmed[deidentify]'")
    files = write_series(tmp_path / "out", 2)
    with _receiving(tmp_path / "home", "--deidentify", "--secret", str(tmp_path / "key")) as port:
        assert [_pushed(port, file) for file in files] == [0, 0]
        kept = sorted((tmp_path / "home" / "in").rglob("*.dcm"))
    assert len(kept) == 2
    assert not any(
        word in file.read_bytes() for file in kept for word in (b"Miller", b"House", b"19500102", b"N-1")
    )


def test_an_unknown_sender_and_another_title_are_refused(tmp_path: Path) -> None:
    (file,) = write_series(tmp_path / "out", 1)
    with _receiving(tmp_path / "home", more='senders = ["WARD3"]') as port:
        assert _pushed(port, file, ours="ELSE") is None
        assert _pushed(port, file, ours="WARD3", theirs="ELSE") is None
        assert _pushed(port, file, ours="WARD3") == 0


def test_with_tls_only_who_has_a_certificate_can_push(tmp_path: Path) -> None:
    (file,) = write_series(tmp_path / "out", 1)
    _certify(tmp_path)
    more = (
        f'tls = true\nca = "{tmp_path}/ca.pem"\ncertificate = "{tmp_path}/ca.pem"\nkey = "{tmp_path}/ca.key"'
    )
    trusting = ssl.create_default_context(cafile=str(tmp_path / "ca.pem"))
    with _receiving(tmp_path / "home", more=more) as port:
        assert _pushed(port, file) is None
        assert _pushed(port, file, tls=trusting) is None
        trusting.load_cert_chain(tmp_path / "ca.pem", tmp_path / "ca.key")
        assert _pushed(port, file, tls=trusting) == 0


def test_bytes_that_are_no_dicom_are_refused_and_harm_nothing(tmp_path: Path) -> None:
    incoming = Incoming(tmp_path, least_free_gb=0.0)
    (file,) = write_series(tmp_path / "out", 1)
    content = file.read_bytes()
    uid = pydicom.dcmread(file).StudyInstanceUID.encode()
    for bad in (b"", b"no", content[:200], content.replace(uid, b"../" * 21 + b"x" * (len(uid) - 63))):
        assert incoming.keep(bad) is None
    assert incoming.keep(content) is not None
    assert sum(incoming.refused.values()) == 4 and len(list(tmp_path.rglob("*.dcm"))) == 2


def test_a_rate_is_kept_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr(time, "sleep", waited.append)
    monkeypatch.setattr(time, "monotonic", lambda: 100.0)
    incoming = Incoming(tmp_path, least_free_gb=0.0, per_second=4.0)
    for _ in range(3):
        incoming.keep(b"no")
    assert waited == [0.0, 0.25, 0.5]


def _pushed(
    port: int, file: Path, *, ours: str = "WARD", theirs: str = "FEDMED", tls: ssl.SSLContext | None = None
) -> int | None:
    """The answer's status; None: the connection was refused."""
    dataset, entity = pydicom.dcmread(file), AE(ae_title=ours)
    entity.add_requested_context(dataset.SOPClassUID, dataset.file_meta.TransferSyntaxUID)
    entity.connection_timeout = entity.acse_timeout = 5
    association = entity.associate(
        "127.0.0.1", port, ae_title=theirs, tls_args=(tls, "localhost") if tls is not None else None
    )
    if not association.is_established:
        return None
    try:
        return int(association.send_c_store(dataset).Status)
    finally:
        association.release()


def _certify(folder: Path) -> None:
    """A certificate that signs itself, for both ends."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    (folder / "ca.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (folder / "ca.key").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
