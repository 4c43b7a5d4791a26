"""A request is a registered site's own, fresh and whole, or it is refused with its reason; nothing of a refused one counts."""

from __future__ import annotations

import itertools
import socket
import ssl
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import httpx
import pytest
from flwr.proto.fleet_pb2 import PullMessagesRequest, PushMessagesRequest
from flwr.proto.message_pb2 import Message, Metadata, PushObjectRequest
from flwr.proto.node_pb2 import Node

from fedmed_common.signed_requests import (
    REFUSAL_HEADER,
    SERVER_TIME_HEADER,
    SERVER_VERSION_HEADER,
    installed_version,
    sign,
)
from fedmed_server.deployment.bodies import AT_ONCE_OF_A_SITE

_numbers = itertools.count()
OK = (200, "")


def reason(response: httpx.Response) -> tuple[int, str]:
    return response.status_code, response.headers.get(REFUSAL_HEADER, "")


@pytest.fixture
def hospital(server: Any) -> Iterator[Any]:
    """Registered and connected."""
    one = server.hospital(f"hospital-{next(_numbers)}")
    server.register(one)
    assert reason(one.activate()) == OK
    return one


def test_a_registered_site_is_served_at_once(server: Any) -> None:
    one = server.hospital("new")
    server.register(one)
    assert [reason(one.activate()), reason(one.beat())] == [OK, OK]
    assert reason(one.ask("pull-messages", PullMessagesRequest(node=Node(node_id=one.node)))) == OK


def test_a_certificate_alone_is_not_enough(server: Any) -> None:
    assert reason(server.hospital("stranger").activate()) == (403, "unregistered")


def test_a_refusal_tells_the_servers_time_and_version(server: Any) -> None:
    refused = server.hospital("stranger").activate()
    assert abs(float(refused.headers[SERVER_TIME_HEADER]) - time.time()) < 60
    assert refused.headers[SERVER_VERSION_HEADER] == installed_version()
    assert refused.content == b""


def test_a_revoked_site_is_refused_while_it_is_connected(server: Any, hospital: Any) -> None:
    assert reason(hospital.beat()) == OK
    server.revoke(hospital.name)
    assert reason(hospital.beat()) == (403, "revoked")
    assert reason(hospital.activate()) == (403, "revoked")


def test_a_site_that_is_reinstated_with_its_key_is_served_again(server: Any, hospital: Any) -> None:
    server.revoke(hospital.name)
    assert reason(hospital.beat()) == (403, "revoked")
    server.register(hospital)
    assert [reason(hospital.activate()), reason(hospital.beat())] == [OK, OK]


def test_a_site_with_a_new_key_is_another_node_and_the_old_key_is_refused(server: Any, hospital: Any) -> None:
    again = server.hospital(hospital.name).restarted()
    server.register(again)
    assert [reason(again.activate()), reason(again.beat())] == [OK, OK]
    assert again.node != hospital.node
    assert reason(hospital.beat()) == (403, "signature")


def test_a_request_without_our_headers_is_refused(hospital: Any) -> None:
    path, body = "/v1/fleet/send-node-heartbeat", hospital.heartbeat().SerializeToString()
    given = {
        name: value for name, value in hospital.headers(path, body).items() if not name.startswith("fedmed-")
    }
    assert reason(hospital.client.post(path, content=body, headers=given)) == (403, "signature")


def test_a_request_signed_with_another_key_is_refused(server: Any, hospital: Any) -> None:
    thief = server.hospital(hospital.name).restarted(node=hospital.node)
    assert reason(thief.beat()) == (403, "signature")


def test_an_altered_body_is_refused(hospital: Any) -> None:
    path, body = "/v1/fleet/send-node-heartbeat", hospital.heartbeat().SerializeToString()
    headers = hospital.headers(path, body)
    assert reason(hospital.client.post(path, content=body + b"\0", headers=headers)) == (403, "signature")


def test_a_header_given_twice_is_refused(hospital: Any) -> None:
    path, body = "/v1/fleet/send-node-heartbeat", hospital.heartbeat().SerializeToString()
    headers = [*hospital.headers(path, body).items(), ("fedmed-boot", "ff")]
    assert reason(hospital.client.post(path, content=body, headers=headers)) == (403, "signature")


def test_a_repeated_request_is_refused_also_at_another_path(hospital: Any) -> None:
    path, body = "/v1/fleet/send-node-heartbeat", hospital.heartbeat().SerializeToString()
    headers = hospital.headers(path, body)
    answers = [hospital.client.post(path, content=body, headers=headers) for _ in range(2)]
    elsewhere = hospital.client.post("/v1/fleet/pull-messages", content=body, headers=headers)
    assert [reason(one) for one in (*answers, elsewhere)] == [OK, (403, "replayed"), (403, "signature")]


@pytest.mark.parametrize("seconds", [-61.0, 61.0])
def test_a_clock_that_is_off_is_refused(hospital: Any, seconds: float) -> None:
    stamp = hospital.stamp()
    assert reason(hospital.beat(replace(stamp, time=stamp.time + seconds))) == (403, "clock")


def test_another_version_is_refused_whether_its_signature_fits_or_not(hospital: Any) -> None:
    stamp = replace(hospital.stamp(), version="99.0.0")
    assert reason(hospital.beat(stamp)) == (403, "version")
    path, body = "/v1/fleet/send-node-heartbeat", hospital.heartbeat().SerializeToString()
    headers = hospital.headers(path, body) | {"fedmed-version": "99.0.0"}
    assert reason(hospital.client.post(path, content=body, headers=headers)) == (403, "version")


def test_a_site_speaks_for_its_own_node_alone(server: Any, hospital: Any) -> None:
    other = server.hospital(f"hospital-{next(_numbers)}")
    server.register(other)
    assert reason(other.activate()) == OK
    assert reason(hospital.beat(node=other.node)) == (403, "another-node")
    reply = Message(metadata=Metadata(src_node_id=other.node))
    push = PushMessagesRequest(node=Node(node_id=hospital.node), messages_list=[reply])
    assert reason(hospital.ask("push-messages", push)) == (403, "another-node")
    path, body = "/v1/fleet/activate-node", b""
    assert reason(hospital.client.post(path, content=body, headers=hospital.headers(path, body))) == (
        403,
        "another-node",
    )


def test_a_sites_key_is_not_activated_by_another_site(server: Any, hospital: Any) -> None:
    other = server.hospital(f"hospital-{next(_numbers)}")
    server.register(other)
    path = "/v1/fleet/activate-node"
    from flwr.proto.fleet_pb2 import ActivateNodeRequest

    body = ActivateNodeRequest(public_key=other.public_key, heartbeat_interval=30.0).SerializeToString()
    headers = other.headers(path, body) | sign(hospital.key, "POST", path, body, hospital.stamp())
    assert reason(hospital.client.post(path, content=body, headers=headers)) == (403, "another-node")


def test_a_second_machine_is_refused_while_the_first_is_connected(hospital: Any) -> None:
    second = hospital.restarted(instance="a2")
    assert reason(second.activate()) == (403, "in-use")
    assert reason(second.beat()) == (403, "in-use")
    assert reason(hospital.beat()) == OK


def test_a_link_that_starts_again_replaces_itself_at_once(hospital: Any) -> None:
    again = hospital.restarted()
    assert [reason(again.activate()), reason(again.beat())] == [OK, OK]
    assert again.node == hospital.node
    assert reason(hospital.beat()) == (403, "in-use")


def test_a_site_that_said_goodbye_may_move_to_another_machine(hospital: Any) -> None:
    from flwr.proto.fleet_pb2 import DeactivateNodeRequest

    assert reason(hospital.ask("deactivate-node", DeactivateNodeRequest(node_id=hospital.node))) == OK
    second = hospital.restarted(instance="a2")
    assert [reason(second.activate()), reason(second.beat())] == [OK, OK]


@pytest.mark.parametrize("megabytes", [7, 30])
def test_a_body_beyond_the_bound_is_refused(hospital: Any, megabytes: int) -> None:
    message = PushObjectRequest(node=Node(node_id=hospital.node), object_content=b"0" * (megabytes * 2**20))
    try:
        assert reason(hospital.ask("push-object", message)) == (413, "too-large")
    except httpx.TransportError:
        assert megabytes == 30
    assert reason(hospital.beat()) == OK


def test_a_body_of_unknown_length_is_bounded_too(hospital: Any) -> None:
    path = "/v1/fleet/push-object"
    headers = hospital.headers(path, b"")
    parts = (b"0" * 2**20 for _ in range(8))
    assert reason(hospital.client.post(path, content=parts, headers=headers)) == (413, "too-large")


def _held_up(one: Any) -> ssl.SSLSocket:
    """An upload of which a byte comes, and no more."""
    context = ssl.create_default_context(cafile=str(one.authority))
    context.load_cert_chain(one.certificate)
    stream = context.wrap_socket(
        socket.create_connection(("127.0.0.1", one.port)), server_hostname="127.0.0.1"
    )
    path = "/v1/fleet/push-object"
    headers = {**one.headers(path, b""), "host": "127.0.0.1", "content-length": str(2**20)}
    lines = [f"POST {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items()), "", "0"]
    stream.sendall("\r\n".join(lines).encode())
    return stream


def test_a_site_whose_uploads_are_held_up_still_beats(hospital: Any) -> None:
    streams = [_held_up(hospital) for _ in range(AT_ONCE_OF_A_SITE + 2)]
    try:
        assert reason(hospital.beat()) == OK
    finally:
        for stream in streams:
            stream.close()
    message = PushObjectRequest(node=Node(node_id=hospital.node), object_content=b"0" * 2**20)
    assert hospital.ask("push-object", message).status_code != httpx.codes.SERVICE_UNAVAILABLE


@pytest.mark.parametrize("path", ["/v1/fleet/get-run?a=b", "/v1/fleet/nothing", "/v1/fleet//get-run", "/"])
def test_a_path_that_no_site_needs_is_refused(hospital: Any, path: str) -> None:
    assert reason(hospital.client.post(path, content=b"", headers=hospital.headers(path, b""))) == (
        404,
        "unknown-path",
    )


def test_another_method_is_refused(hospital: Any) -> None:
    assert reason(hospital.client.get("/v1/fleet/get-run")) == (404, "unknown-path")


def test_a_body_that_is_no_message_is_flowers_to_refuse(hospital: Any) -> None:
    path, body = "/v1/fleet/pull-messages", b"\xff\xff"
    answer = hospital.client.post(path, content=body, headers=hospital.headers(path, body))
    assert reason(answer) == (400, "")
