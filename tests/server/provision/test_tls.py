"""Real handshakes on loopback: the certificates do what they are for, and nothing else."""

from __future__ import annotations

import socket
import ssl
import threading
from pathlib import Path

import pytest

from fedmed_common import identity
from fedmed_server.provision.certify import sign
from fedmed_server.provision.create import create
from fedmed_server.provision.folder import ConsortiumFolder

from .conftest import Coordinator


def _site(coordinator: Coordinator, folder: Path) -> tuple[Path, Path]:
    key = identity.new_key()
    folder.mkdir()
    identity.save_key(folder / "site.key", key)
    certified = sign(coordinator.folder, coordinator.request("north", key))
    (folder / "site.pem").write_text(identity.certificate_text(certified.certificate))
    return folder / "site.pem", folder / "site.key"


def _shake_hands(
    folder: ConsortiumFolder,
    ca: Path,
    chain: tuple[Path, Path] | None,
    name: str,
    own: tuple[Path, Path] | None = None,
) -> str:
    """The name in the certificate that the server sees; raises what the client's side of the connection raises."""
    home = folder.server
    at_server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(home.authority))
    at_server.verify_mode = ssl.CERT_REQUIRED
    at_server.load_cert_chain(*(own or (home.certificate, home.key)))
    at_site = ssl.create_default_context(cafile=str(ca))
    at_site.verify_flags |= ssl.VERIFY_X509_STRICT
    if chain is not None:
        at_site.load_cert_chain(*chain)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        seen: list[str] = []
        thread = threading.Thread(target=_accept, args=(listener, at_server, seen))
        thread.start()
        try:
            with (
                socket.create_connection(listener.getsockname(), timeout=10) as raw,
                at_site.wrap_socket(raw, server_hostname=name) as connection,
            ):
                connection.sendall(b"?")
                assert connection.recv(1) == b"!"
        finally:
            thread.join()
    return seen[0]


def _accept(listener: socket.socket, context: ssl.SSLContext, seen: list[str]) -> None:
    raw, _ = listener.accept()
    try:
        with context.wrap_socket(raw, server_side=True) as connection:
            subject = dict(field[0] for field in (connection.getpeercert() or {})["subject"])
            seen.append(subject["commonName"])
            connection.recv(1)
            connection.sendall(b"!")
    except OSError:
        raw.close()


@pytest.mark.parametrize("name", ["127.0.0.1", "fedmed.example.org", "10.0.0.5", "localhost"])
def test_a_site_and_the_server_accept_each_other(name: str, coordinator: Coordinator, tmp_path: Path) -> None:
    chain = _site(coordinator, tmp_path / "home")
    assert _shake_hands(coordinator.folder, coordinator.folder.authority_certificate, chain, name) == "north"


def test_the_server_has_no_other_name(coordinator: Coordinator, tmp_path: Path) -> None:
    chain = _site(coordinator, tmp_path / "home")
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        _shake_hands(coordinator.folder, coordinator.folder.authority_certificate, chain, "other.example.org")


def test_nobody_connects_without_a_certificate(coordinator: Coordinator) -> None:
    with pytest.raises(OSError, match=r"."):
        _shake_hands(coordinator.folder, coordinator.folder.authority_certificate, None, "localhost")


def test_another_consortium_is_a_stranger(coordinator: Coordinator, tmp_path: Path) -> None:
    other = ConsortiumFolder(tmp_path / "other")
    create(coordinator.file, other)
    chain = _site(coordinator, tmp_path / "home")
    with pytest.raises(ssl.SSLCertVerificationError):
        _shake_hands(other, coordinator.folder.authority_certificate, chain, "localhost")
    with pytest.raises(OSError, match=r"."):
        _shake_hands(other, other.authority_certificate, chain, "localhost")


def test_a_site_cannot_play_the_server(coordinator: Coordinator, tmp_path: Path) -> None:
    chain = _site(coordinator, tmp_path / "home")
    with pytest.raises(ssl.SSLCertVerificationError, match="purpose"):
        _shake_hands(
            coordinator.folder, coordinator.folder.authority_certificate, chain, "localhost", own=chain
        )
