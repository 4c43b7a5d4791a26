"""Flower hands a reply over once: what is lost on the way from there is asked for again, and costs nobody anything."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import httpx
import numpy as np
import pytest
from flwr.proto.runtime_pb2 import PullAppMessagesResponse
from safetensors.numpy import load_file
from scripted import Sites, make_request
from superlink import SuperLink

from fedmed_server.app import RunRequest, run_federation
from fedmed_server.state import model_file

PATIENTS = {"a": 9, "b": 7, "c": 8}


@dataclass
class Forgetful(SuperLink):
    """Hands replies over and loses its answer, each time ``lost`` says how."""

    lost: list[Exception] = field(default_factory=list)

    def _pull_messages(self, content: bytes) -> PullAppMessagesResponse:
        answer = super()._pull_messages(content)
        if answer.messages_list and self.lost:
            raise self.lost.pop()
        return answer


def _request(folder: Path, sites: Sites) -> RunRequest:
    return replace(make_request(folder, sites), expected=tuple(sites.patients))


@pytest.fixture(autouse=True)
def _hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedmed_server.app._DEPLOYED_POLL_SECONDS", 0.001)


def test_replies_that_are_lost_on_the_way_from_flower_are_asked_for_again(tmp_path: Path) -> None:
    whole, sites = Sites(PATIENTS), Sites(PATIENTS)
    run_federation(SuperLink(whole).grid(), _request(tmp_path / "whole", whole))
    faults = [httpx.ReadError("x"), httpx.ReadTimeout("x"), httpx.RemoteProtocolError("x")]
    link = Forgetful(sites, lost=[*faults, *faults])
    assert run_federation(link.grid(), _request(tmp_path / "run", sites)).status == "completed"
    assert link.lost == []
    assert max(attempt for *_, attempt in sites.asked) > 0
    first, second = (load_file(model_file(tmp_path / name, "last")) for name in ("whole", "run"))
    for name, array in first.items():
        np.testing.assert_array_equal(array, second[name])


def test_a_server_that_could_not_be_asked_has_lost_nothing(tmp_path: Path) -> None:
    sites, troubles = Sites(PATIENTS), iter([httpx.ConnectError("x")] * 2)
    link = SuperLink(sites, trouble=lambda path: next(troubles, None) if path == "pull-messages" else None)
    assert run_federation(link.grid(), _request(tmp_path / "run", sites)).status == "completed"
    assert {attempt for *_, attempt in sites.asked} == {0}
