"""What each port serves, and whom: hospitals get Flower's Fleet API and nothing else; the rest needs the server's own secrets."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
from flwr.proto.control_pb2 import ListNodesRequest, ListNodesResponse
from flwr.proto.runtime_pb2 import AcquireTaskRequest, AcquireTaskResponse
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor, SuperExecAuthHttpInterceptor
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE
from flwr.supercore.protobuf.translation import PROTOBUF_REQUEST_TYPES
from flwr.supercore.runtime import RuntimeHttpClient

from fedmed_common import identity
from fedmed_common.signed_requests import REFUSAL_HEADER
from fedmed_server.deployment.flower_fleet import handlers
from fedmed_server.deployment.guard import FLEET_PATHS
from fedmed_server.deployment.home import read_secret

MESSAGES = {"content-type": PROTOBUF_MEDIA_TYPE, "accept": PROTOBUF_MEDIA_TYPE}
CALLS = tuple(path for method, path in PROTOBUF_REQUEST_TYPES if method == "POST")
CONTROL = tuple(path for path in CALLS if path.startswith("/v1/control/"))
RUNTIME = tuple(path for path in CALLS if path.startswith("/v1/runtime/"))
PAGES = ("/docs", "/openapi.json", "/redoc", "/v1/runtime/responses", "/metrics")


@pytest.fixture(scope="module")
def served() -> set[tuple[str, str]]:
    """Every route of Flower's application, as method and path."""
    import os

    os.environ.setdefault("FLWR_DATABASE", ":memory:")
    from fastapi.routing import APIRoute, iter_route_contexts
    from flwr.superlink.main import create_app

    app = create_app()
    found: set[tuple[str, str]] = set()
    for context in iter_route_contexts(app.routes):
        path = getattr(context, "path", None) or context.route.path
        methods = context.route.methods if isinstance(context.route, APIRoute) else {"GET"}
        found.update((method, path) for method in methods)
    return found


@pytest.fixture
def hospital(server: Any) -> Iterator[Any]:
    one = server.hospital("ports")
    server.register(one)
    assert one.activate().status_code == 200
    return one


def test_the_guard_passes_no_call_that_flower_does_not_have() -> None:
    fleet = {path for path in CALLS if path.startswith("/v1/fleet/")}
    assert fleet - FLEET_PATHS == {"/v1/fleet/register-node", "/v1/fleet/unregister-node"}
    assert FLEET_PATHS - fleet == set()
    assert handlers(cast(Any, None), cast(Any, None)).keys() == FLEET_PATHS


def test_hospitals_reach_the_fleet_api_and_nothing_else(hospital: Any, served: set[tuple[str, str]]) -> None:
    assert {path for _, path in served} > set(CALLS)
    others = sorted(served | {("POST", path) for path in PAGES} | {("GET", path) for path in PAGES})
    for method, path in others:
        if path in FLEET_PATHS or path == "/health":
            continue
        answer = hospital.client.request(method, path, headers=hospital.headers(path, b""))
        assert (path, answer.status_code) == (path, 404)
        assert answer.headers[REFUSAL_HEADER] == "unknown-path"


def test_health_answers_hospitals(hospital: Any) -> None:
    assert hospital.client.get("/health").status_code == 200
    assert hospital.client.post("/health", content=b"").status_code == 404


@pytest.mark.parametrize("token", [None, "wrong"])
def test_every_control_call_needs_the_token(server: Any, token: str | None) -> None:
    headers = MESSAGES if token is None else {**MESSAGES, "authorization": f"Bearer {token}"}
    client = server.private(headers)
    assert len(CONTROL) > 40
    assert {path: client.post(path, content=b"").status_code for path in CONTROL} == dict.fromkeys(
        CONTROL, 401
    )


def test_the_token_opens_the_control_api(server: Any, hospital: Any) -> None:
    token = read_secret(server.home.control_token)
    client = server.private({**MESSAGES, "authorization": f"Bearer {token}"})
    answer = client.post("/v1/control/list-nodes", content=ListNodesRequest().SerializeToString())
    nodes = {node.name: node.node_id for node in ListNodesResponse.FromString(answer.content).nodes_info}
    assert nodes["ports"] == hospital.node


def test_every_runtime_call_needs_a_secret(server: Any) -> None:
    client = server.private(MESSAGES)
    version = {"flwr-package-name": "flwr", "flwr-package-version": "1.41.0", "flwr-component-name": "x"}
    answers = {path: client.post(path, content=b"", headers=version).status_code for path in RUNTIME}
    assert answers == dict.fromkeys(RUNTIME, 401)


@pytest.mark.parametrize(("secret", "status"), [(b"wrong", 401), (None, 200)])
def test_a_task_is_taken_with_the_secret(server: Any, secret: bytes | None, status: int) -> None:
    right = read_secret(server.home.superexec_secret).encode()
    call = {"/flwr.proto.Runtime/AcquireTask"}
    auth = SuperExecAuthHttpInterceptor(master_secret=secret or right, protected_methods=call)
    version = RuntimeVersionHttpInterceptor(component_name="test")
    address = f"127.0.0.1:{server.home.settings().private.port}"
    authority = server.home.authority.read_bytes()
    with RuntimeHttpClient.from_server_address(address, False, authority, [version, auth]) as client:
        try:
            answer = client.AcquireTask(AcquireTaskRequest(supported_task_types=["serverapp"]))
        except httpx.HTTPStatusError as error:
            assert error.response.status_code == status == 401
        else:
            assert (answer, status) == (AcquireTaskResponse(), 200)


def test_the_private_port_serves_no_pages(server: Any) -> None:
    client = server.private()
    assert [client.get(path).status_code for path in ("/docs", "/openapi.json", "/")] == [404, 404, 404]
    assert client.get("/health").status_code == 200


def test_without_a_certificate_of_the_consortium_nobody_is_heard(server: Any, tmp_path: Path) -> None:
    home, port = server.home, server.home.settings().public.port
    for certificate in (None, _own_certificate(tmp_path), home.certificate):
        context = ssl.create_default_context(cafile=str(home.authority))
        if certificate is not None:
            context.load_cert_chain(certificate, home.key if certificate == home.certificate else None)
        with (
            httpx.Client(verify=context, trust_env=False) as client,
            pytest.raises(httpx.TransportError),
        ):
            client.get(f"https://127.0.0.1:{port}/health")


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1])
def test_old_tls_is_refused(hospital: Any, server: Any, version: ssl.TLSVersion) -> None:
    context = ssl.create_default_context(cafile=str(server.home.authority))
    context.load_cert_chain(hospital.certificate)
    context.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning):
        context.minimum_version = version
        context.maximum_version = version
    with httpx.Client(verify=context, trust_env=False) as client, pytest.raises(httpx.TransportError):
        client.get(f"https://127.0.0.1:{hospital.port}/health")


def test_no_other_host_is_contacted(server: Any, hospital: Any) -> None:
    assert hospital.beat().status_code == 200
    assert server.contacted <= {"127.0.0.1", "localhost"}


def _own_certificate(folder: Path) -> Path:
    """What anybody can make: a certificate of an authority of one's own."""
    from datetime import UTC, datetime, timedelta

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.x509.oid import NameOID

    key = identity.new_key()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "ports")])
    today = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(today - timedelta(days=1))
        .not_valid_after(today + timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    file = folder / "own.pem"
    identity.save_key(file, key)
    with file.open("a") as stream:
        stream.write(identity.certificate_text(certificate))
    return file
