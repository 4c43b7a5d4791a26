"""The reverse proxies that ship, each as a real process in front of a real TLS server."""

from __future__ import annotations

import http.client
import json
import re
import shutil
import socket
import ssl
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from fedmed_server.deployment.home import RequestLimits, load_server
from fedmed_simulations.rehearsal.machines import FEDMED, Machine, fedmed, free_ports, wait_for

from .conftest import DEPLOY, NAME, Certificates, output, tool

PROXY = DEPLOY / "proxy"
EIGHT_MIB = 8 * 2**20


class _Backend(ThreadingHTTPServer):
    """Answers every request with the path that it asked for, and keeps what reached it."""

    daemon_threads = True

    def __init__(self, certificates: Certificates) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.reached: list[tuple[str, int, dict[str, str]]] = []
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*certificates.pair("server"))
        self.socket = context.wrap_socket(self.socket, server_side=True)


class _Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Backend

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server.reached.append((self.path, len(body), headers))
        self.send_response(200)
        self.send_header("content-length", str(len(self.path)))
        self.end_headers()
        self.wfile.write(self.path.encode())

    do_GET = do_POST  # noqa: N815

    def log_message(self, format: str, *arguments: object) -> None:
        return


@dataclass(frozen=True, kw_only=True)
class Front:
    """A proxy that runs."""

    port: int
    backend: _Backend
    certificates: Certificates

    def ask(
        self,
        path: str,
        *,
        method: str = "POST",
        body: bytes = b"",
        certificate: str | None = "member",
        version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_2,
    ) -> tuple[int, bytes]:
        """Status and body of one request; ``certificate``: whose the client shows."""
        context = ssl.create_default_context(cafile=str(self.certificates.folder / "ca.pem"))
        context.maximum_version = context.minimum_version = version
        if version < ssl.TLSVersion.TLSv1_2:
            context.set_ciphers("DEFAULT:@SECLEVEL=0")
        if certificate:
            context.load_cert_chain(*self.certificates.pair(certificate))
        connection = http.client.HTTPSConnection("127.0.0.1", self.port, timeout=20, context=context)
        try:
            connection.request(method, path, body, {"fedmed-site": "alpha", "x-forwarded-for": "10.0.0.9"})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()


@contextmanager
def _running(command: list[str], port: int, folder: Path, environment: dict[str, str]) -> Iterator[None]:
    machine = Machine(command, log=folder / "proxy.log", environment=environment)
    try:
        wait_for(lambda: _answers(port), "the proxy listens", 20, (machine,))
        yield
    finally:
        machine.stop()


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="module")
def backend(certificates: Certificates) -> Iterator[_Backend]:
    server = _Backend(certificates)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


PROXIES = ("caddy", "nginx")


@pytest.fixture(scope="module", params=PROXIES)
def front(
    request: pytest.FixtureRequest,
    certificates: Certificates,
    backend: _Backend,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Front]:
    tool(request.param)
    folder, port = tmp_path_factory.mktemp(request.param), free_ports(1)[0]
    address = f"127.0.0.1:{backend.server_address[1]}"
    with _proxy(request.param, folder, tls=certificates.folder, port=port, backend=address, name=NAME):
        yield Front(port=port, backend=backend, certificates=certificates)


@contextmanager
def _proxy(kind: str, folder: Path, *, tls: Path, port: int, backend: str, name: str) -> Iterator[None]:
    environment = {
        "HOME": str(folder),
        "FEDMED_TLS": str(tls),
        "FEDMED_PORT": str(port),
        "FEDMED_BACKEND": backend,
        "FEDMED_NAME": name,
    }
    if kind == "caddy":
        command = [tool(kind), "run", "--adapter", "caddyfile", "--config", str(PROXY / "Caddyfile")]
    else:
        main = _nginx(folder, {"/etc/fedmed/tls": str(tls), "127.0.0.1:9443": backend, NAME: name}, port)
        command = [tool(kind), "-c", str(main), "-p", str(folder)]
    with _running(command, port, folder, environment):
        yield


def _nginx(folder: Path, places: dict[str, str], port: int) -> Path:
    """The file that ships with this test's ports and folders in it, inside the least that nginx wants around it."""
    text = (PROXY / "nginx.conf").read_text().replace("listen 8443", f"listen 127.0.0.1:{port}")
    for shipped, here in places.items():
        text = text.replace(shipped, here)
    (folder / "fedmed.conf").write_text(text)
    temporary = "".join(
        f"  {kind}_temp_path {folder}/{kind};\n"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    main = folder / "main.conf"
    main.write_text(
        f"daemon off;\nmaster_process off;\npid {folder}/pid;\nerror_log {folder}/error.log;\nevents {{}}\n"
        f"http {{\n  access_log off;\n{temporary}  include {folder}/fedmed.conf;\n}}\n"
    )
    return main


@pytest.mark.parametrize("path", ["/v1/fleet/activate-node", "/v1/fleet/objects/push?x=%2F", "/health"])
def test_a_member_reaches_what_sites_need_and_the_path_stays_as_it_was_signed(
    front: Front, path: str
) -> None:
    assert front.ask(path, body=b"x" * 1000) == (200, path.encode())
    assert front.backend.reached[-1][1] == 1000


def test_the_sites_headers_arrive_and_those_of_proxies_do_not(front: Front) -> None:
    front.ask("/v1/fleet/heartbeat")
    headers = front.backend.reached[-1][2]
    assert headers["fedmed-site"] == "alpha"
    assert not [name for name in headers if name.startswith("x-forwarded")]


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/docs",
        "/openapi.json",
        "/healthy",
        "/v1/control/start-run",
        "/v1/runtime/tasks",
        "/v1/fleet/../control/start-run",
        "/v1/fleet/%2e%2e/control/start-run",
        "/V1/FLEET/x/../../control",
    ],
)
def test_nothing_else_is_behind_it(front: Front, path: str) -> None:
    before = len(front.backend.reached)
    assert front.ask(path)[0] == 404
    assert len(front.backend.reached) == before


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("certificate", [None, "stranger"])
def test_who_has_no_certificate_of_the_consortium_gets_nothing(
    front: Front, certificate: str | None, version: ssl.TLSVersion
) -> None:
    before = len(front.backend.reached)
    try:
        status, _ = front.ask("/v1/fleet/activate-node", certificate=certificate, version=version)
    except (ssl.SSLError, OSError):
        status = 400
    assert status == 400
    assert len(front.backend.reached) == before


def test_a_body_of_eight_mebibytes_passes_and_one_byte_more_does_not(front: Front) -> None:
    assert front.ask("/v1/fleet/push", body=bytes(EIGHT_MIB))[0] == 200
    before = len(front.backend.reached)
    try:
        status, _ = front.ask("/v1/fleet/push", body=bytes(EIGHT_MIB + 1))
    except OSError:
        status = 413
    assert status == 413
    assert all(size <= EIGHT_MIB for _, size, _ in front.backend.reached[before:])


def test_old_tls_is_refused(front: Front) -> None:
    with pytest.raises((ssl.SSLError, OSError, ValueError)):
        front.ask("/health", version=ssl.TLSVersion.TLSv1_1)


def test_caddys_file_is_valid_and_formatted(certificates: Certificates) -> None:
    caddy = tool("caddy")
    shutil.copy(PROXY / "Caddyfile", certificates.folder / "Caddyfile")
    text = (PROXY / "Caddyfile").read_text()
    assert output(caddy, "fmt", PROXY / "Caddyfile") == text
    output(
        "env", f"FEDMED_TLS={certificates.folder}", caddy, "validate", "--adapter", "caddyfile",
        "--config", PROXY / "Caddyfile",
    )  # fmt: skip


def test_nginxs_file_parses() -> None:
    crossplane = pytest.importorskip("crossplane", reason="crossplane is not installed")
    parsed = crossplane.parse(str(PROXY / "nginx.conf"), single=True, strict=True, check_ctx=False)
    assert (parsed["status"], parsed["errors"]) == ("ok", [])


def test_both_bound_bodies_as_the_server_does_by_default() -> None:
    megabytes = RequestLimits().body_mb
    assert re.search(rf"client_max_body_size {megabytes}m;", (PROXY / "nginx.conf").read_text())
    assert (PROXY / "Caddyfile").read_text().count(f"{megabytes}MiB") == 2
    assert NAME in (PROXY / "nginx.conf").read_text()


@pytest.fixture(scope="module")
def consortium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, int]]:
    """A server that takes connections from a proxy alone, and a site that joined; the folder, and the proxy's port."""
    folder = tmp_path_factory.mktemp("consortium")
    front, public, private, health = free_ports(4)
    file, made, site = folder / "consortium.toml", folder / "made", folder / "site"
    file.write_text(
        f'name = "trial"\n[coordinator]\naddress = "127.0.0.1:{front}"\n[[sites]]\nname = "alpha"\n'
    )
    fedmed("provision", str(file), "--out", str(made))
    fedmed("site", "init", str(made / "kits" / "alpha.zip"), "--home", str(site))
    fedmed("provision", "sign", str(site / "request.json"), "--out", str(made))
    fedmed("site", "join", str(made / "alpha.answer.json"), "--home", str(site))
    (made / "server" / "server.toml").write_text(
        f'name = "trial"\n[public]\nhost = "127.0.0.1"\nport = {public}\nbehind_proxy = true\n'
        f"[private]\nport = {private}\n[health]\nport = {health}\n"
    )
    server = Machine([*FEDMED, "serve", "--home", str(made / "server")], log=folder / "server.log")
    try:
        wait_for(lambda: _answers(public), "the server takes connections", 60, (server,))
        yield folder, front
    finally:
        server.stop()


@pytest.mark.parametrize("kind", PROXIES)
def test_a_site_works_through_it_with_the_server_behind(
    kind: str, consortium: tuple[Path, int], tmp_path: Path
) -> None:
    tool(kind)
    folder, port = consortium
    server, site = folder / "made" / "server", folder / "site"
    behind = f"127.0.0.1:{load_server(server / 'server.toml').public.port}"
    with _proxy(kind, tmp_path, tls=server / "tls", port=port, backend=behind, name="localhost"):
        fedmed("site", "check", "--home", str(site))
        command = [sys.executable, "-m", "fedmed_client.link.link", str(site)]
        link = Machine(command, log=tmp_path / "link.log")
        try:
            wait_for(lambda: _connection(server) == "connected", "the site is connected", 60, (link,))
        finally:
            assert link.stop() == 0
        wait_for(lambda: _connection(server) == "away", "the site is away", 60)


def _connection(server: Path) -> str:
    (site,) = json.loads(fedmed("sites", "--home", str(server), "--json"))
    return str(site["connection"])
