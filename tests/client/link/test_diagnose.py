"""Every way in which a connection fails has a sentence and an exit code of its own; each is brought about for real."""

from __future__ import annotations

import base64
import json
import re
import shutil
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from fedmed_client.link import diagnose, problems, reach
from fedmed_client.link.flower import Fleet, ServerBusy
from fedmed_client.link.pace import LEASE_SECONDS
from fedmed_client.link.reach import LARGEST_ANSWER_BYTES, find_proxy
from fedmed_client.site.home import SiteFolder
from fedmed_common import errors, identity, signed_requests
from fedmed_common.cli import root_command, run
from fedmed_common.consortium import Connection
from fedmed_common.errors import ConnectionProblem, FedmedError
from fedmed_common.site_config import Network
from fedmed_server.provision.it_page import HEADERS_TOLD
from fedmed_server.provision.registry import load_registry, save_registry
from fedmed_simulations.rehearsal.machines import Machine, free_ports, wait_for
from fedmed_simulations.rehearsal.relay import Relay

Start = Callable[[SiteFolder], Machine]
Listen = Callable[..., int]
HTML = b"HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: 5\r\n\r\nhello"


@pytest.fixture
def listen() -> Iterator[Listen]:
    """Take connections at a port of 127.0.0.0/8 and have ``serve`` deal with each; the port."""
    opened: list[socket.socket] = []

    def start(serve: Callable[[socket.socket], None], host: str = "127.0.0.1") -> int:
        listener = socket.create_server((host, 0))
        opened.append(listener)

        def take() -> None:
            while True:
                try:
                    stream, _ = listener.accept()
                except OSError:
                    return
                opened.append(stream)
                threading.Thread(target=_quietly, args=(serve, stream), daemon=True).start()

        threading.Thread(target=take, daemon=True).start()
        return int(listener.getsockname()[1])

    yield start
    for one in opened:
        one.close()


def _quietly(serve: Callable[[socket.socket], None], stream: socket.socket) -> None:
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


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def home(offline: Any) -> SiteFolder:
    """A hospital of a consortium whose server does not run; the tests put something in its place."""
    return offline.join()  # type: ignore[no-any-return]


# What lies in the folder.


def test_no_certificate(offline: Any) -> None:
    expect(offline.join(certify_it=False), errors.ProvisionError, "site.pem", "cannot connect yet")


def test_no_home(tmp_path: Path) -> None:
    expect(SiteFolder(tmp_path), errors.ConfigError, "not a site's home yet")


def test_own_certificate_expired(offline: Any, home: SiteFolder) -> None:
    certify_anew(offline, home, now=datetime.now(UTC) - timedelta(days=100))
    expect(home, errors.OwnExpired, "this site's certificate expired on")


def test_own_certificate_not_valid_yet(offline: Any, home: SiteFolder) -> None:
    certify_anew(offline, home, now=datetime.now(UTC) + timedelta(days=2))
    expect(home, errors.OwnExpired, "is not valid before", "this machine's clock says")


def test_a_certificate_for_another_key(offline: Any, home: SiteFolder) -> None:
    home.key_file.unlink()
    identity.save_key(home.key_file, identity.new_key())
    expect(home, errors.ProvisionError, "is for another key")


def test_a_certificate_of_another_site(offline: Any, home: SiteFolder) -> None:
    other = offline.join()
    for file in ("key_file", "certificate_file"):
        shutil.copy(getattr(other, file), getattr(home, file))
    expect(home, errors.ProvisionError, f"is for the site '{other.path.name}'")


def test_another_authority_in_the_folder(coordinator: Any, home: SiteFolder) -> None:
    shutil.copy(coordinator.home.authority, home.authority_file)
    expect(home, errors.ProvisionError, "is not the authority whose fingerprint")


def test_another_name_in_the_sites_file(home: SiteFolder) -> None:
    home.site_file.write_text(home.site_file.read_text().replace(home.path.name, "somebody"))
    expect(home, errors.ConfigError, "is 'somebody'")


def test_an_authority_of_a_proxy_that_cannot_be_read(home: SiteFolder) -> None:
    (home.path / "proxy.pem").write_text("nothing")
    with home.site_file.open("a") as file:
        file.write('\n[network]\nca = "proxy.pem"\n')
    expect(home, errors.ConfigError, "network.ca", "it holds no certificate")


# The way there.


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
    page = (Path(__file__).parents[3] / "docs" / "what-leaves-a-site.md").read_text()
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


# Proxies.


def tunnel(asked: list[bytes]) -> Callable[[socket.socket], None]:
    """A CONNECT proxy that goes anywhere on this machine; ``asked``: the requests that it got."""

    def serve(stream: socket.socket) -> None:
        asked.append(stream.recv(65536))
        host, _, port = asked[-1].split()[1].decode().rpartition(":")
        with socket.create_connection((host, int(port)), 10) as there:
            stream.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            back = threading.Thread(target=_pump, args=(there, stream), daemon=True)
            back.start()
            _pump(stream, there)
            back.join(5)

    return serve


def _pump(source: socket.socket, sink: socket.socket) -> None:
    try:
        while chunk := source.recv(65536):
            sink.sendall(chunk)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        return


@pytest.mark.parametrize(
    ("status", "kind", "phrase"),
    [
        ("403 Forbidden", errors.ProxyRefuses, "it forbids it"),
        ("407 Proxy Authentication Required", errors.ProxyRefuses, "user name and a password"),
        ("502 Bad Gateway", errors.Unreachable, "cannot reach"),
    ],
)
def test_a_proxy_refuses(
    status: str,
    kind: type[FedmedError],
    phrase: str,
    home: SiteFolder,
    listen: Listen,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    port = listen(saying(f"HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n".encode()))
    monkeypatch.setenv("HTTPS_PROXY", f"http://user:secret@127.0.0.1:{port}")
    expect(home, kind, f"the proxy 127.0.0.1:{port}", phrase)
    assert "secret" not in str(problem(home))


def test_a_proxy_that_is_away(home: SiteFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{free_ports(1)[0]}")
    expect(home, errors.ProxyRefuses, "cannot be reached", "nothing listens there")


def test_a_proxy_that_nobody_knows(home: SiteFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://no-such-proxy.invalid:3128")
    expect(home, errors.ProxyRefuses, "no-such-proxy.invalid:3128", "cannot be looked up")


def test_a_proxy_that_is_none(home: SiteFolder, listen: Listen, monkeypatch: pytest.MonkeyPatch) -> None:
    port = listen(saying(b"hello\r\n"))
    monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{port}")
    expect(home, errors.ProxyRefuses, "the proxy")


def test_a_proxy_that_lets_through_with_a_password(
    coordinator: Any, listen: Listen, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bytes] = []
    home = coordinator.join()
    port = listen(tunnel(asked))
    text = home.site_file.read_text()
    home.site_file.write_text(f'{text}\n[network]\nproxy = "http://me:s%40fe@127.0.0.1:{port}"\n')
    assert diagnose.check(home)[-1].error is None
    given = base64.b64encode(b"me:s@fe")
    assert len(asked) == 2
    assert all(b"proxy-authorization: basic " + given.lower() in request.lower() for request in asked)
    assert b"Host: " + home.connection().address.encode() in asked[0]


CONNECTION = Connection(
    consortium="c",
    site="s",
    address="fed.example.org:9443",
    fingerprint="0" * 64,
    signer=base64.b64encode(bytes(32)).decode(),
)


@pytest.mark.parametrize(
    ("network", "environment", "proxy"),
    [
        ({}, {}, ""),
        ({}, {"HTTPS_PROXY": "proxy:1"}, "http://proxy:1"),
        ({}, {"ALL_PROXY": "http://proxy:1"}, "http://proxy:1"),
        ({}, {"HTTPS_PROXY": "http://proxy:1", "NO_PROXY": "example.org"}, ""),
        ({}, {"HTTPS_PROXY": "http://proxy:1", "NO_PROXY": "other.org"}, "http://proxy:1"),
        ({"proxy": "http://own:1"}, {"HTTPS_PROXY": "http://proxy:1", "NO_PROXY": "*"}, "http://own:1"),
        ({"proxy": "http://own:1", "no_proxy": ["fed.example.org"]}, {}, ""),
        ({"no_proxy": [".example.org"]}, {"HTTPS_PROXY": "http://proxy:1"}, ""),
    ],
)
def test_which_proxy(
    network: dict[str, Any], environment: dict[str, str], proxy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert find_proxy(CONNECTION, Network.model_validate(network)) == proxy


@pytest.mark.parametrize(
    "proxy",
    [
        "http://jane:geheim/word@proxy:3128",
        "http://jane:12/geheim@proxy:3128",
        "http://jane:geheim#1@proxy:3128",
        "http://jane:geheim@proxy:port",
        "http://jane:geheim@proxy:99999",
        "http://jane:geheim@",
        "socks5://jane:geheim@proxy:1080",
    ],
)
@pytest.mark.parametrize("where", ["site.toml", "HTTPS_PROXY"])
def test_a_proxy_that_cannot_be_one_is_named_without_its_password(
    where: str, proxy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {}
    if where == "site.toml" and proxy.startswith("http"):
        settings = {"proxy": proxy}
    else:
        monkeypatch.setenv("HTTPS_PROXY", proxy)
    with pytest.raises(errors.ConfigError, match="is not the address of an HTTP proxy") as refused:
        find_proxy(CONNECTION, Network.model_validate(settings))
    assert not any(word in str(refused.value) for word in ("jane", "geheim"))


def test_networks_can_be_excepted(monkeypatch: pytest.MonkeyPatch) -> None:
    connection = Connection(
        consortium="c",
        site="s",
        address="10.1.2.3:9443",
        fingerprint="0" * 64,
        signer=base64.b64encode(bytes(32)).decode(),
    )
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:1")
    assert find_proxy(connection, Network(no_proxy=("10.0.0.0/8",))) == ""
    assert find_proxy(connection, Network(no_proxy=("10.9.0.0/16",))) == "http://proxy:1"


# What the coordinator's server says.


def test_all_is_well(coordinator: Any, capsys: pytest.CaptureFixture[str]) -> None:
    home = coordinator.join()
    assert run(root_command(), ["site", "check", "--home", str(home.path)]) == 0
    out = capsys.readouterr().out
    assert [line.split()[0] for line in out.splitlines()] == [
        "files",
        "certificate",
        "name",
        "connection",
        "coordinator",
    ]


def test_a_check_does_not_disturb_the_link_that_runs(coordinator: Any, start: Start) -> None:
    home = coordinator.join()
    link = start(home)
    wait_for(lambda: coordinator.state(home).state == "connected", "the link connects", 60, [link])
    boot = coordinator.state(home).boot
    wait_for(lambda: "connected" in home.status_file.read_text(), "the link says so", 20, [link])
    assert diagnose.check(home)[-1].said == "the site runs, and its link says: connected"
    assert (coordinator.state(home).boot, coordinator.state(home).refusal) == (boot, None)


def test_unregistered(coordinator: Any) -> None:
    home = coordinator.join(certify_it=False)
    certify_anew(coordinator, home)
    expect(home, errors.NotRegistered, f"does not know the site '{home.path.name}'")


def test_revoked(coordinator: Any) -> None:
    home = coordinator.join()
    coordinator.revoke(home)
    expect(home, errors.Revoked, f"has revoked the site '{home.path.name}'")


@pytest.mark.parametrize(("seconds", "told"), [(300, "300 seconds ahead of"), (-300, "300 seconds behind")])
def test_clock_off(seconds: int, told: str, coordinator: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    home, real = coordinator.join(), time.time
    monkeypatch.setattr(time, "time", lambda: real() + seconds)
    expect(home, errors.ClockOff, told)


def test_another_version(coordinator: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    home = coordinator.join()
    for module in (signed_requests, problems):
        monkeypatch.setattr(module, "installed_version", lambda: "9.9.9")
    expect(home, errors.VersionMismatch, "this site 9.9.9", "server runs fedmed")


def test_a_key_in_use(coordinator: Any, start: Start, tmp_path: Path) -> None:
    home = coordinator.join()
    link = start(home)
    wait_for(lambda: coordinator.state(home).state == "connected", "the link connects", 60, [link])
    copy = tmp_path / home.path.name
    shutil.copytree(home.path, copy, ignore=shutil.ignore_patterns("instance", "run", "status.json"))
    expect(SiteFolder(copy), errors.KeyInUse, "another machine is connected")


def test_a_key_that_is_not_the_registered_one(coordinator: Any) -> None:
    home = coordinator.join()
    sites = load_registry(coordinator.home.registry)
    home.key_file.unlink()
    identity.save_key(home.key_file, identity.new_key())
    certify_anew(coordinator, home)
    save_registry(coordinator.home.registry, sites)
    expect(home, errors.IdentityRefused, "refuses this site's signature")


# All together.


def test_the_command_ends_with_the_problems_code(
    home: SiteFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    closed = at(home, free_ports(1)[0])
    assert run(root_command(), ["site", "check", "--home", str(closed.path)]) == errors.Unreachable.exit_code
    said = capsys.readouterr()
    assert "error: the coordinator's server cannot be reached" in said.err
    assert run(root_command(), ["site", "check", "--json", "--home", str(closed.path)]) == 18
    document = json.loads(capsys.readouterr().out)
    assert document["exit_code"] == 18
    assert [(step["step"], step["ok"], step["code"]) for step in document["steps"]] == [
        ("files", True, ""),
        ("certificate", True, ""),
        ("name", True, ""),
        ("connection", False, "unreachable"),
    ]


def test_every_kind_is_documented_and_has_a_code_of_its_own() -> None:
    kinds = [
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, ConnectionProblem) and kind is not ConnectionProblem
    ]
    assert len({kind.exit_code for kind in kinds}) == len(kinds) == 14
    page = (Path(__file__).parents[3] / "docs" / "connecting.md").read_text()
    rows = dict(line.strip("| ").split(" | ", 1) for line in page.splitlines() if line[:3] in ("| 1", "| 2"))
    assert sorted(rows) == sorted(str(kind.exit_code) for kind in kinds)
