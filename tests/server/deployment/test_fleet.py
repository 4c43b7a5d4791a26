"""Sites' calls are Flower's own: the same answers and the same errors, with less asked of the database."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, cast

import httpx
import pytest
from flwr.common.constant import Status
from flwr.proto.fleet_pb2 import PullMessagesRequest, PullMessagesResponse
from flwr.proto.message_pb2 import PullObjectRequest
from flwr.proto.node_pb2 import Node
from flwr.proto.run_pb2 import GetRunRequest
from flwr.supercore.error import ApiErrorCode
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE
from flwr.supercore.run import RunStatus

from fedmed_server.deployment.flower_fleet import ThriftyState


class Scripted:
    """A state whose runs have the statuses that the test says; ``asked``: the runs that it was asked about."""

    def __init__(self, statuses: Sequence[str]) -> None:
        self._statuses, self.asked = list(statuses), list[set[int]]()

    def get_run_status(self, run_ids: set[int]) -> dict[int, RunStatus]:
        self.asked.append(run_ids)
        status = self._statuses.pop(0)
        return {run: RunStatus(status, "", "") for run in run_ids}

    def get_object(self, run: int, name: str) -> bytes:
        return b"content"


def test_that_a_run_goes_on_is_known_for_a_second_and_all_else_is_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = [100.0, 100.0, 100.9, 100.9, 101.1, 102.2, 102.2]
    asked = [{1}, {1}, {1}, {1, 2}, {1}, {1}, {1}]
    monkeypatch.setattr(time, "monotonic", lambda: clock.pop(0))
    goes_on, over = Status.RUNNING, Status.FINISHED
    state = Scripted([Status.PENDING, goes_on, goes_on, goes_on, over, over])
    thrifty = ThriftyState(cast(Any, state))
    told = [{run: one.status for run, one in thrifty.get_run_status(runs).items()} for runs in asked]
    assert state.asked == [{1}, {1}, {2}, {1}, {1}, {1}]
    assert told == [
        {1: Status.PENDING}, {1: goes_on}, {1: goes_on}, {1: goes_on, 2: goes_on}, {1: goes_on}, {1: over}, {1: over},
    ]  # fmt: skip


def test_what_is_stored_is_flowers() -> None:
    thrifty = ThriftyState(cast(Any, Scripted([])))
    assert thrifty.get_object(1, "name") == b"content"
    thrifty.store_traffic(1, bytes_sent=1, bytes_recv=0)
    with pytest.raises(AttributeError):
        thrifty.no_method_of_flowers()


@pytest.fixture
def hospital(server: Any) -> Any:
    one = server.hospital("caller")
    server.register(one)
    assert one.activate().status_code == httpx.codes.OK
    return one


def test_an_answer_is_flowers_message(hospital: Any) -> None:
    answer = hospital.ask("pull-messages", PullMessagesRequest(node=Node(node_id=hospital.node)))
    assert (answer.status_code, answer.headers["content-type"]) == (httpx.codes.OK, PROTOBUF_MEDIA_TYPE)
    assert PullMessagesResponse.FromString(answer.content) == PullMessagesResponse()


def test_an_error_is_flowers_with_its_code_and_nothing_of_the_server(hospital: Any) -> None:
    node = Node(node_id=hospital.node)
    unknown = hospital.ask("get-run", GetRunRequest(node=node, run_id=7))
    assert unknown.headers["content-type"] == "application/json"
    assert unknown.json()["code"] == ApiErrorCode.FLEET_GET_RUN_FAILED
    assert str(hospital.node) not in unknown.text
    unexpected = hospital.ask("pull-object", PullObjectRequest(node=node, run_id=7, object_id="x"))
    assert (unexpected.status_code, unexpected.json()) == (500, {"detail": "Internal server error."})


def test_a_body_that_is_no_message_is_an_error_of_the_site(hospital: Any) -> None:
    path, body = "/v1/fleet/get-run", b"\xff\xff\xff"
    answer = hospital.client.post(path, content=body, headers=hospital.headers(path, body))
    assert answer.status_code == 400
    assert answer.json()["code"] == ApiErrorCode.INVALID_PROTOBUF_PAYLOAD
