"""What can be in the server's place, or on the way there."""

from __future__ import annotations

import re
import socket
import ssl
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from diagnosed import HTML, Listen, at, expect, problem, saying, server_context, under_tls

from fedmed_client.link import reach
from fedmed_client.link.flower import Fleet, ServerBusy
from fedmed_client.link.pace import LEASE_SECONDS
from fedmed_client.link.reach import LARGEST_ANSWER_BYTES
from fedmed_client.site.home import SiteFolder
from fedmed_common import errors, signed_requests
from fedmed_server.provision.it_page import HEADERS_TOLD
from fedmed_simulations.rehearsal.machines import free_ports
from fedmed_simulations.rehearsal.relay import Relay


def test_unknown_host(home: SiteFolder) -> None:
    expect(at(home, 9443, "no-such-host.invalid"), errors.UnknownHost, "no-such-host.invalid")


def test_port_closed(home: SiteFolder) -> None:
    expect(at(home, free_ports(1)[0]), errors.Unreachable, "nothing listens there")


def test_silence(home: SiteFolder, listen: Listen) -> None:
    expect(at(home, listen(lambda _stream: time.sleep(60))), errors.Unreachable, "there is no answer")


def test_wrong_authority(home: SiteFolder, coordinator: Any, listen: Listen, tmp_path: Path) -> None:
    port = listen(under_tls(server_context(coordinator, tmp_path), saying(HTML)))
    expect(at(home, port), errors.WrongAuthority, "is not from this consortium's authority")


def test_an_inspecting_proxys_authority_can_be_trusted(
    home: SiteFolder, coordinator: Any, listen: Listen, tmp_path: Path
) -> None:
    port = listen(under_tls(server_context(coordinator, tmp_path), saying(HTML)))
    with home.site_file.open("a") as file:
        file.write(f'\n[network]\nca = "{coordinator.home.authority}"\n')
    expect(at(home, port), errors.NotTheCoordinator, "text/html")


def test_server_certificate_expired(home: SiteFolder, offline: Any, listen: Listen, tmp_path: Path) -> None:
    old = server_context(offline, tmp_path, now=datetime.now(UTC) - timedelta(days=800))
    expect(at(home, listen(under_tls(old, saying(HTML)))), errors.ServerExpired, "has expired", "clock says")


def test_server_certificate_not_valid_yet(
    home: SiteFolder, offline: Any, listen: Listen, tmp_path: Path
) -> None:
    early = server_context(offline, tmp_path, now=datetime.now(UTC) + timedelta(days=2))
    expect(at(home, listen(under_tls(early, saying(HTML)))), errors.ClockOff, "is not valid yet")


def test_wrong_name(home: SiteFolder, offline: Any, listen: Listen, tmp_path: Path) -> None:
    port = listen(under_tls(server_context(offline, tmp_path), saying(HTML)), "127.0.0.2")
    expect(at(home, port, "127.0.0.2"), errors.WrongName, "127.0.0.2", "is for another name")


@pytest.mark.parametrize("by", ["an alert", "hanging up"])
def test_a_server_that_does_not_take_the_certificate(
    by: str, home: SiteFolder, offline: Any, coordinator: Any, listen: Listen, tmp_path: Path
) -> None:
    context = server_context(offline, tmp_path)
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(coordinator.home.authority)
    if by == "an alert":
        expect(
            at(home, listen(under_tls(context, saying(HTML)))), errors.IdentityRefused, "ends the connection"
        )
        return
    with Relay(free_ports(1)[0], inside=context) as relay:  # asyncio says nothing when it hangs up
        expect(at(home, relay.port), errors.IdentityRefused, "ends the connection")


@pytest.mark.parametrize(
    ("answer", "phrase"),
    [
        (HTML, "status 200 and text/html"),
        (b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n", "status 404"),
        (
            b"HTTP/1.1 302 Found\r\nlocation: https://127.0.0.1/login\r\ncontent-length: 0\r\n\r\n",
            "status 302",
        ),
        (
            b"HTTP/1.1 200 OK\r\ncontent-type: application/protobuf\r\ncontent-length: 3\r\n\r\n\xff\xff\xff",
            "read",
        ),
        (
            b"HTTP/1.1 200 OK\r\ncontent-type: application/protobuf\r\ncontent-encoding: gzip\r\n"
            b"content-length: 3\r\n\r\n\xff\xff\xff",
            "read",
        ),
        (
            b"HTTP/1.1 200 OK\r\ncontent-type: application/protobuf\r\ncontent-length: 99999999\r\n\r\n"
            + bytes(LARGEST_ANSWER_BYTES + 1),
            "read",
        ),
        (b"220 mail.example ESMTP\r\n\r\n", "does not speak HTTP"),
    ],
    ids=["a page", "nothing", "a login", "garbage", "compression", "no end", "another protocol"],
)
def test_something_else_behind_the_right_certificate(
    answer: bytes, phrase: str, home: SiteFolder, offline: Any, listen: Listen, tmp_path: Path
) -> None:
    port = listen(under_tls(server_context(offline, tmp_path), saying(answer)))
    expect(at(home, port), errors.NotTheCoordinator, "is not a fedmed server", phrase)


def test_the_pages_list_every_header_that_leaves(
    home: SiteFolder, offline: Any, listen: Listen, tmp_path: Path
) -> None:
    asked: list[bytes] = []

    def hear(stream: socket.socket) -> None:
        asked.append(stream.recv(65536))
        stream.sendall(HTML)

    problem(at(home, listen(under_tls(server_context(offline, tmp_path), hear))))
    request = next(one for one in asked if one.startswith(b"POST /v1/fleet/activate-node"))
    lines = request.partition(b"\r\n\r\n")[0].decode().split("\r\n")[1:]
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
    page = (Path(__file__).parents[4] / "docs" / "what-leaves-a-site.md").read_text()
    table = page.split("\n## Headers")[1].split("\n## ")[0].split("|---|---|\n")[1]
    rows = [line.split(" | ")[0] for line in table.splitlines() if line.startswith("| ")]
    assert {name for row in rows for name in re.findall(r"`([\w-]+)`", row)} == set(headers)
    stamped = {signed_requests.header_of(field) for field in signed_requests.FIELDS}
    told = {name for names in HEADERS_TOLD for name in names}
    assert told | stamped | {signed_requests.SIGNATURE_HEADER} == set(headers)
    assert (headers["user-agent"], headers["accept-encoding"]) == ("fedmed", "identity")


def test_an_alert_that_anyone_on_the_way_can_send_does_not_end_a_site_for_good(
    home: SiteFolder, listen: Listen
) -> None:
    """That this site's certificate has expired is for this machine's clock to say."""
    fatal_certificate_expired = bytes.fromhex("15 0303 0002 022d")
    port = listen(saying(fatal_certificate_expired))
    expect(at(home, port), errors.ClockOff, "takes this site's certificate for expired")


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"SSH-2.0-OpenSSH_9.6\r\n"])
def test_something_that_speaks_no_tls(answer: bytes, home: SiteFolder, listen: Listen) -> None:
    expect(at(home, listen(saying(answer))), errors.NotTheCoordinator, "does not speak TLS")


def test_a_gateway_whose_server_is_away(
    home: SiteFolder, offline: Any, listen: Listen, tmp_path: Path
) -> None:
    away = b"HTTP/1.1 502 Bad Gateway\r\ncontent-type: text/html\r\ncontent-length: 0\r\n\r\n"
    port = listen(under_tls(server_context(offline, tmp_path), saying(away)))
    expect(at(home, port), errors.Unreachable, "a gateway", "502")


def test_a_server_that_has_too_much_to_read_is_asked_again(
    home: SiteFolder, offline: Any, listen: Listen, tmp_path: Path
) -> None:
    busy = b"HTTP/1.1 503 Busy\r\ncontent-type: application/json\r\ncontent-length: 0\r\n\r\n"
    port = listen(under_tls(server_context(offline, tmp_path), saying(busy)))
    fleet = Fleet(reach.load(at(home, port)))
    with pytest.raises(ServerBusy, match="too much to do"):
        fleet.activate(LEASE_SECONDS)
    fleet.close()
