"""Servers that are not what they should be, and what a site says of each."""

from __future__ import annotations

import json
import socket
import ssl
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from fedmed_client.link import diagnose
from fedmed_client.site.home import SiteFolder
from fedmed_common import identity
from fedmed_common.errors import FedmedError

Listen = Callable[..., int]
HTML = b"HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: 5\r\n\r\nhello"


def quietly(serve: Callable[[socket.socket], None], stream: socket.socket) -> None:
    try:
        with stream:
            serve(stream)
    except OSError:
        return


def saying(answer: bytes) -> Callable[[socket.socket], None]:
    """Reads something and answers the same each time."""

    def serve(stream: socket.socket) -> None:
        if stream.recv(65536):
            stream.sendall(answer)
            stream.recv(65536)

    return serve


def under_tls(
    context: ssl.SSLContext, serve: Callable[[socket.socket], None]
) -> Callable[[socket.socket], None]:
    def secure(stream: socket.socket) -> None:
        with context.wrap_socket(stream, server_side=True) as inside:
            serve(inside)

    return secure


def server_context(coordinator: Any, folder: Path, *, now: datetime | None = None) -> ssl.SSLContext:
    """A server's certificate from the coordinator's authority, made at another time if need be."""
    key = identity.new_key()
    consortium = coordinator.folder.recorded()
    certificate = coordinator.folder.authority().certify_server(consortium, key.public_key(), now=now)
    file = folder / f"server-{time.monotonic_ns()}.pem"
    identity.save_key(file, key)
    with file.open("a") as stream:
        stream.write(identity.certificate_text(certificate))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    return context


def certify_anew(coordinator: Any, home: SiteFolder, *, now: datetime | None = None) -> None:
    """Another certificate for the home's key, of which the registry knows nothing."""
    name = home.connection().site
    certificate = coordinator.folder.authority().certify_site(
        coordinator.folder.recorded(), name, home.key().public_key(), now=now
    )
    home.certificate_file.write_text(identity.certificate_text(certificate))


def at(home: SiteFolder, port: int, host: str = "127.0.0.1") -> SiteFolder:
    document = json.loads(home.connection_file.read_text())
    home.connection_file.write_text(json.dumps(document | {"address": f"{host}:{port}"}))
    return home


def problem(home: SiteFolder) -> FedmedError:
    last = diagnose.check(home)[-1]
    assert last.error is not None, last.said
    return last.error


def expect(home: SiteFolder, kind: type[FedmedError], *phrases: str) -> None:
    """The problem is of this kind, one sentence, and what to do."""
    found = problem(home)
    assert type(found) is kind, str(found)
    sentence, fix = str(found).split("\n  fix: ")
    assert "\n" not in sentence + fix
    assert [phrase for phrase in phrases if phrase not in sentence] == []
