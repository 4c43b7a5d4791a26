"""``fedmed site receive`` as the process that a hospital runs, pushed to by others' tools."""

from __future__ import annotations

import datetime as dt
import shutil
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pydicom
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from pynetdicom import AE

from fedmed_client.deidentify.secret import SiteSecret
from fedmed_client.deidentify.table import Options
from fedmed_client.pacs.keeping import Deidentifying, Incoming
from fedmed_common.errors import ConfigError, DataError
from fedmed_simulations.rehearsal.machines import FEDMED, free_ports

from .conftest import write_series

pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)
"""pynetdicom leaves a socket open where a connection is refused."""

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
        said, _ = process.communicate(timeout=150)
    assert process.returncode == 0 and "stopped" in said


def test_what_dcmtk_pushes_is_kept_whole(tmp_path: Path) -> None:
    program = shutil.which("storescu", path="/usr/bin:/usr/local/bin")
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


@pytest.mark.parametrize("bad", [b"", b"no", "cut", "slashes", "dots"])
def test_what_is_no_dicom_is_refused_and_harms_nothing(bad: bytes | str, tmp_path: Path) -> None:
    (file,) = write_series(tmp_path / "out", 1)
    content = file.read_bytes()
    uid = pydicom.dcmread(file).StudyInstanceUID.encode()
    made = {"cut": content[:200], "slashes": b"/" * len(uid), "dots": b".." + b"\0" * (len(uid) - 2)}
    if isinstance(bad, str):
        bad = made[bad] if bad == "cut" else content.replace(uid, made[bad])
    incoming = Incoming(tmp_path / "in" / "inner", least_free_gb=0.0)
    incoming.open()
    with pytest.raises(DataError):
        incoming.keep(bad)
    assert {code: count for code, (count, _) in incoming.refused.items()} == {"refused": 1}
    incoming.keep(content)
    assert len(list((tmp_path / "in").rglob("*.dcm"))) == 1


def test_a_folder_is_not_filled_in_two_ways(tmp_path: Path) -> None:
    pytest.importorskip("rapidocr", reason="pip install 'fedmed[deidentify]'")
    Incoming(tmp_path).open()
    Incoming(tmp_path).open()
    deidentifying = Deidentifying(SiteSecret(bytes(32)), Options())
    with pytest.raises(ConfigError, match="other settings"):
        Incoming(tmp_path, deidentifying=deidentifying).open()


def test_two_threads_that_bring_the_same_image_leave_it_whole(tmp_path: Path) -> None:
    (file,) = write_series(tmp_path / "out", 1)
    incoming, content = Incoming(tmp_path / "in", least_free_gb=0.0), file.read_bytes()
    incoming.open()
    with ThreadPoolExecutor(8) as pool:
        kept = list(pool.map(lambda _: incoming.keep(content), range(64)))
    (only,) = (tmp_path / "in").rglob("*.dcm")
    assert only.read_bytes() == content and len(set(kept)) == 1 and incoming.kept == 64


def test_a_rate_is_kept_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr(time, "sleep", waited.append)
    monkeypatch.setattr(time, "monotonic", lambda: 100.0)
    incoming = Incoming(tmp_path, least_free_gb=0.0, per_second=4.0)
    for _ in range(3):
        with suppress(DataError):
            incoming.keep(b"no")
    assert waited == [0.0, 0.25, 0.5]


def test_with_tls_a_client_that_says_nothing_keeps_nobody_out(tmp_path: Path) -> None:
    (file,) = write_series(tmp_path / "out", 1)
    _certify(tmp_path)
    more = f'tls = true\ncertificate = "{tmp_path}/ca.pem"\nkey = "{tmp_path}/ca.key"'
    trusting = ssl.create_default_context(cafile=str(tmp_path / "ca.pem"))
    with _receiving(tmp_path / "home", more=more) as port, socket.create_connection(("127.0.0.1", port)):
        assert _pushed(port, file, tls=trusting) == 0


def test_who_stops_in_the_middle_of_a_message_does_not_keep_it_from_ending(tmp_path: Path) -> None:
    with ExitStack() as held, _receiving(tmp_path / "home") as port:
        held.enter_context(socket.create_connection(("127.0.0.1", port))).sendall(b"\1\0\0")
        held.enter_context(socket.create_connection(("127.0.0.1", port))).sendall(b"\1\0\0\0\1\0rest")
        time.sleep(1)


def _pushed(
    port: int,
    file: Path,
    *,
    ours: str = "WARD",
    theirs: str = "FEDMED",
    tls: ssl.SSLContext | None = None,
    seconds: float = 60.0,
) -> int | None:
    """The answer's status; None: the connection was refused."""
    dataset, entity = pydicom.dcmread(file), AE(ae_title=ours)
    entity.add_requested_context(dataset.SOPClassUID, dataset.file_meta.TransferSyntaxUID)
    entity.connection_timeout = entity.acse_timeout = seconds
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
