"""A consortium's server as a real process on loopback, and hospitals that speak to it with certificate, key and signature."""

from __future__ import annotations

import os
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
import tomli_w
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.proto.fleet_pb2 import ActivateNodeRequest, ActivateNodeResponse
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.node_pb2 import Node
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE
from grpc_health.v1 import health_pb2, health_pb2_grpc

from fedmed_common import identity
from fedmed_common.consortium import load_consortium
from fedmed_common.signed_requests import Stamp, sign
from fedmed_server.deployment.home import ServerHome
from fedmed_server.deployment.site_states import SiteState, load_site_states
from fedmed_server.provision.create import create
from fedmed_server.provision.folder import ConsortiumFolder
from fedmed_server.provision.registry import RegisteredSite, load_registry, save_registry
from fedmed_simulations.rehearsal.machines import free_ports, wait_for

MESSAGES = {"content-type": PROTOBUF_MEDIA_TYPE, "accept": PROTOBUF_MEDIA_TYPE}

_opened: list[httpx.Client] = []

# Every host that a process looks up or connects to, one a line.
AUDIT = """
import os, sys
def hook(event, values):
    if event in ("socket.connect", "socket.getaddrinfo"):
        host = values[1][0] if event == "socket.connect" else values[0]
        with open(os.environ["CONTACTED"], "a") as file:
            file.write(f"{host}\\n")
sys.addaudithook(hook)
"""


@dataclass(kw_only=True)
class Hospital:
    """One start of a hospital's link. ``key`` signs; ``certificate`` opens the connection."""

    name: str
    key: ec.EllipticCurvePrivateKey
    certificate: Path
    port: int
    authority: Path
    instance: str = "a1"
    boot: str = "b1"
    node: int = 0
    client: httpx.Client = field(init=False)

    def __post_init__(self) -> None:
        context = ssl.create_default_context(cafile=str(self.authority))
        context.load_cert_chain(self.certificate)
        address = f"https://127.0.0.1:{self.port}"
        self.client = httpx.Client(base_url=address, verify=context, trust_env=False, timeout=30)
        _opened.append(self.client)

    def restarted(self, **changes: Any) -> Hospital:
        """Another start of the link, or with changes another link."""
        return replace(self, **{"boot": self.boot + "0"} | changes)

    def stamp(self) -> Stamp:
        return Stamp.new(site=self.name, instance=self.instance, boot=self.boot)

    def headers(self, path: str, body: bytes, stamp: Stamp | None = None) -> dict[str, str]:
        return {**MESSAGES, **sign(self.key, "POST", path, body, stamp or self.stamp())}

    @property
    def public_key(self) -> bytes:
        return public_key_to_bytes(self.key.public_key())

    def ask(self, call: str, message: Any, stamp: Stamp | None = None) -> httpx.Response:
        path, body = f"/v1/fleet/{call}", message.SerializeToString()
        return self.client.post(path, content=body, headers=self.headers(path, body, stamp))

    def activate(self) -> httpx.Response:
        request = ActivateNodeRequest(public_key=self.public_key, heartbeat_interval=30.0)
        response = self.ask("activate-node", request)
        if response.status_code == httpx.codes.OK:
            self.node = ActivateNodeResponse.FromString(response.content).node_id
        return response

    def beat(self, stamp: Stamp | None = None, **changes: Any) -> httpx.Response:
        return self.ask("send-node-heartbeat", self.heartbeat(**changes), stamp)

    def heartbeat(self, node: int | None = None) -> SendNodeHeartbeatRequest:
        return SendNodeHeartbeatRequest(
            node=Node(node_id=self.node if node is None else node), heartbeat_interval=30.0
        )


@dataclass(kw_only=True)
class Server:
    """The server's home, its authority, and its process while it runs."""

    folder: ConsortiumFolder
    names: tuple[str, ...]
    process: subprocess.Popen[bytes] | None = None

    @property
    def home(self) -> ServerHome:
        return self.folder.server

    @property
    def contacted(self) -> set[str]:
        file = self.folder.path / "contacted"
        return set(file.read_text().split()) if file.exists() else set()

    def hospital(self, name: str) -> Hospital:
        """A hospital with a new key, certified by the authority, not registered yet."""
        key = identity.new_key()
        consortium = self.folder.recorded()
        certificate = self.folder.authority().certify_site(consortium, name, key.public_key())
        file = self.folder.path / f"{name}-{time.monotonic_ns()}.pem"
        identity.save_key(file, key)
        with file.open("a") as stream:
            stream.write(identity.certificate_text(certificate))
        port = self.home.settings().public.port
        return Hospital(name=name, key=key, certificate=file, port=port, authority=self.home.authority)

    def register(self, *hospitals: Hospital) -> None:
        sites = load_registry(self.home.registry)
        for one in hospitals:
            certificate = identity.load_certificate(one.certificate)
            sites[one.name] = RegisteredSite(name=one.name, certificate=certificate)
        save_registry(self.home.registry, sites)

    def revoke(self, name: str) -> None:
        sites = load_registry(self.home.registry)
        sites[name] = replace(sites[name], revoked=datetime.now(UTC).isoformat())
        save_registry(self.home.registry, sites)

    def start(self, *command: str) -> None:
        """The SuperLink's process, or another command; returns once the health service says that it serves."""
        listener = self.folder.path / "audit"
        listener.mkdir(exist_ok=True)
        (listener / "sitecustomize.py").write_text(AUDIT)
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(listener), *filter(None, [os.environ.get("PYTHONPATH")])]),
            "CONTACTED": str(self.folder.path / "contacted"),
            "OMP_NUM_THREADS": "1",
        }
        arguments = command or ("-m", "fedmed_server.deployment.superlink", str(self.home.path))
        with (self.folder.path / "output").open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, *arguments], env=environment, stdout=output, stderr=output
            )
        self.wait_serving()

    def wait_serving(self) -> None:
        wait_for(self.serving, "the server serves", 90.0)

    def serving(self) -> bool:
        if self.process is not None and self.process.poll() is not None:
            pytest.fail((self.folder.path / "output").read_text())
        with grpc.insecure_channel(f"127.0.0.1:{self.home.settings().health.port}") as channel:
            try:
                answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=5)
            except grpc.RpcError:
                return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    def stop(self) -> int:
        """As an administrator does; the exit code."""
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(30)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def private(self, headers: dict[str, str] | None = None) -> httpx.Client:
        context = ssl.create_default_context(cafile=str(self.home.authority))
        address = f"https://127.0.0.1:{self.home.settings().private.port}"
        client = httpx.Client(base_url=address, verify=context, trust_env=False, headers=headers, timeout=30)
        _opened.append(client)
        return client

    def state(self, site: str) -> SiteState:
        return load_site_states(self.home.site_states).get(site, SiteState())


def make(folder: Path) -> Server:
    public, private, health = free_ports(3)
    file = folder / "consortium.toml"
    document = {
        "name": "test",
        "coordinator": {"address": f"127.0.0.1:{public}"},
        "sites": [{"name": "alpha", "contact": "it@alpha.example"}],
    }
    file.write_text(tomli_w.dumps(document))
    consortium = ConsortiumFolder(folder / "consortium")
    create(file, consortium)
    settings = {
        "name": "test",
        "public": {"host": "127.0.0.1", "port": public},
        "private": {"port": private},
        "health": {"port": health},
        "limits": {"body_mb": 6},
    }
    consortium.server.settings_file.write_text(tomli_w.dumps(settings))
    return Server(folder=consortium, names=load_consortium(file).names)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One for all tests that leave it running; each takes hospitals of its own."""
    yield from _ended(make(tmp_path_factory.mktemp("server")))


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[Server]:
    """One for a test that stops it; not started yet."""
    server = make(tmp_path)
    try:
        yield server
    finally:
        if server.process is not None and server.process.poll() is None:
            server.kill()


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    """No connection outlives its test."""
    yield
    while _opened:
        _opened.pop().close()


def _ended(server: Server) -> Iterator[Server]:
    try:
        server.start()
        yield server
    finally:
        if server.process is not None and server.process.poll() is None:
            server.kill()
