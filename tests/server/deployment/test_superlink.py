"""The SuperLink's process is killed, stopped and started again; what hospitals have signed up to holds."""

from __future__ import annotations

import asyncio
import ssl
import time
from dataclasses import replace
from typing import Any, cast

import httpx
import pytest
from flwr.proto.control_pb2 import ListNodesRequest, ListNodesResponse
from flwr.proto.fleet_pb2 import DeactivateNodeRequest
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE

from fedmed_common import identity
from fedmed_common.signed_requests import REFUSAL_HEADER, installed_version
from fedmed_server.deployment import superlink
from fedmed_server.deployment.home import read_secret
from fedmed_server.deployment.serve import WRONG_HOME
from fedmed_server.provision.create import renew_server
from fedmed_simulations.rehearsal.machines import wait_for

OK = (200, "")


def reason(response: httpx.Response) -> tuple[int, str]:
    return response.status_code, response.headers.get(REFUSAL_HEADER, "")


def test_a_killed_server_knows_its_hospitals_again(own_server: Any) -> None:
    alpha = own_server.hospital("alpha")
    own_server.register(alpha)
    own_server.start()
    assert reason(alpha.activate()) == OK
    wait_for(lambda: own_server.state("alpha").boot == alpha.boot, "the state is written", 30.0)
    path, body = "/v1/fleet/send-node-heartbeat", alpha.heartbeat().SerializeToString()
    before = alpha.headers(path, body, alpha.stamp())
    assert reason(alpha.client.post(path, content=body, headers=before)) == OK
    seen = own_server.state("alpha").last_seen
    wait_for(lambda: own_server.state("alpha").last_seen > seen, "the heartbeat is written", 30.0)
    ahead = replace(alpha.stamp(), time=time.time() + 3600)
    assert reason(alpha.beat(ahead)) == (403, "clock")
    wait_for(lambda: own_server.state("alpha").clock_skew_seconds > 3000, "the refusal is written", 30.0)

    own_server.kill()
    own_server.start()
    node = alpha.node
    assert reason(alpha.client.post(path, content=body, headers=before)) == (403, "replayed")
    assert reason(alpha.restarted(instance="a2").activate()) == (403, "in-use")
    assert reason(alpha.beat()) == OK
    again = alpha.restarted()
    assert [reason(again.activate()), reason(again.beat()), again.node] == [OK, OK, node]
    assert own_server.contacted <= {"127.0.0.1", "localhost"}


def test_a_look_that_fails_ends_nothing_and_is_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    looks: list[int] = []

    class FullDisk:
        async def look(self) -> None:
            looks.append(len(looks))
            if len(looks) < 4:
                raise OSError(f"the disk is full {len(looks)}")
            raise asyncio.CancelledError

    monkeypatch.setattr(superlink, "_LOOK_SECONDS", 0.0)
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(superlink._look(cast(Any, FullDisk())))
    assert (len(looks), len(caplog.records)) == (4, 1)


def test_a_stopped_server_ends_well_and_a_renewed_certificate_holds_from_its_next_start(
    own_server: Any,
) -> None:
    own_server.start()
    old = _presented(own_server)
    renew_server(own_server.folder, own_server.folder.recorded())
    assert _presented(own_server) == old
    assert own_server.stop() == 0
    own_server.start()
    assert (
        _presented(own_server) == identity.load_certificate(own_server.home.certificate).serial_number != old
    )


def test_behind_a_proxy_the_proxy_asks_for_the_certificate(own_server: Any) -> None:
    file = own_server.home.settings_file
    file.write_text(file.read_text().replace("[public]", "[public]\nbehind_proxy = true"))
    alpha = own_server.hospital("alpha")
    own_server.register(alpha)
    own_server.start()
    context = ssl.create_default_context(cafile=str(own_server.home.authority))
    with httpx.Client(base_url=alpha.client.base_url, verify=context, trust_env=False) as proxy:
        alpha.client.close()
        alpha.client = proxy
        assert [reason(alpha.activate()), reason(alpha.beat())] == [OK, OK]
        assert reason(own_server.hospital("beta").activate()) == (403, "unregistered")


def test_a_home_that_is_not_complete_is_named(own_server: Any, capfd: pytest.CaptureFixture[str]) -> None:
    own_server.home.registry.unlink()
    with pytest.raises(pytest.fail.Exception, match=r"registry\.json: No such file"):
        own_server.start()
    assert own_server.process.wait() == WRONG_HOME


def test_the_states_say_who_is_there(server: Any) -> None:
    names = ("there", "left", "refused", "shut-out", "silent")
    sites = {name: server.hospital(name) for name in names}
    server.register(*sites.values())
    for name in ("there", "left", "shut-out"):
        assert reason(sites[name].activate()) == OK
    left = sites["left"]
    assert reason(left.ask("deactivate-node", DeactivateNodeRequest(node_id=left.node))) == OK
    assert reason(server.hospital("refused").activate()) == (403, "signature")
    server.revoke("shut-out")

    wanted = dict(zip(names, ("connected", "away", "refused", "refused", "never"), strict=True))
    wait_for(lambda: {name: server.state(name).state for name in names} == wanted, "the states", 30.0)
    there, refused = server.state("there"), server.state("refused")
    assert (there.version, there.boot, there.refusal) == (installed_version(), "b1", None)
    assert abs(there.clock_skew_seconds) < 60
    expires = identity.load_certificate(sites["there"].certificate).not_valid_after_utc.isoformat()
    assert there.certificate_expires == expires
    assert (refused.refusal.code, refused.last_seen) == ("signature", "")
    assert server.state("shut-out").refusal.code == "revoked"


def test_a_revoked_site_that_says_nothing_is_no_node_any_more(server: Any) -> None:
    one = server.hospital("revoked-in-silence")
    server.register(one)
    assert reason(one.activate()) == OK
    assert one.name in _nodes(server)
    server.revoke(one.name)
    wait_for(lambda: one.name not in _nodes(server), "the node is removed", 30.0)


def test_a_registry_that_cannot_be_read_leaves_the_last_one_in_force(server: Any) -> None:
    one = server.hospital("kept")
    server.register(one)
    assert reason(one.activate()) == OK
    good = server.home.registry.read_bytes()
    try:
        server.home.registry.write_text("{")
        assert reason(one.beat()) == OK
    finally:
        server.home.registry.write_bytes(good)
    assert reason(one.beat()) == OK


def _nodes(server: Any) -> set[str]:
    """The names of the nodes that Flower counts on."""
    client = server.private(
        {
            "content-type": PROTOBUF_MEDIA_TYPE,
            "accept": PROTOBUF_MEDIA_TYPE,
            "authorization": f"Bearer {read_secret(server.home.control_token)}",
        }
    )
    answer = client.post("/v1/control/list-nodes", content=ListNodesRequest().SerializeToString())
    nodes = ListNodesResponse.FromString(answer.content).nodes_info
    return {node.name for node in nodes if node.status != "unregistered"}


def _presented(server: Any) -> int:
    """The serial number of the certificate on the private port, which asks for none."""
    from cryptography import x509

    text = ssl.get_server_certificate(("127.0.0.1", server.home.settings().private.port))
    return x509.load_pem_x509_certificate(text.encode()).serial_number
