"""What the link answers where there is nothing to carry out: the expired, the unreadable, the too large, the repeated."""

from __future__ import annotations

import json
import threading
import time
import tomllib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tomli_w
from flwr.app import Message, Metadata, RecordDict

from fedmed_client.link import messages
from fedmed_client.link.carrying import seconds_left
from fedmed_client.link.flower import RunOver
from fedmed_client.link.line import Line
from fedmed_client.link.link import Link
from fedmed_client.link.orders import Answered, Desk
from fedmed_client.link.status import Status
from fedmed_client.site.home import SiteFolder
from fedmed_common import wire
from fedmed_common.config import Experiment
from fedmed_simulations.rehearsal.machines import wait_for


class _Here:
    """A site's link in this process: its line is open, and its desk is asked by the test."""

    def __init__(self, home: SiteFolder) -> None:
        self.home, self._stop = home, threading.Event()
        status = Status(home, home.connection().address)
        self.line = Line(home, status, self._stop)
        self.line.open()
        self.desk = Desk(home, self.line, status, self._stop)
        self.link = Link(home, self._stop)

    def take(self) -> Message:
        taken: list[Message] = []

        def came() -> bool:
            message = self.desk.take()
            taken.extend([message] if message is not None else [])
            return bool(taken)

        wait_for(came, "the order comes", 20)
        return taken[0]

    def send(self, message: Message, answered: Answered | None) -> None:
        assert answered is not None
        self.link._send(self.line, self.desk, message, answered)

    def close(self) -> None:
        self._stop.set()
        self.line.close()

    def events(self) -> list[tuple[str, str]]:
        lines = [json.loads(line) for line in self.home.audit_file.read_text().splitlines()]
        return [(line["event"], line.get("rule", "")) for line in lines if "run" in line]


@pytest.fixture
def here(coordinator: Any) -> Iterator[_Here]:
    link = _Here(coordinator.join(limits={"least_free_gb": 1e9, "order_seconds": 0.2}))
    yield link
    link.close()


def test_what_has_expired_is_not_begun() -> None:
    settings: dict[str, Any] = {"run_id": 1, "message_id": "", "src_node_id": 1, "dst_node_id": 2}
    settings |= {"reply_to_message_id": "", "group_id": "", "message_type": "train", "ttl": 5.0}
    left = {
        age: Message(content=RecordDict(), metadata=Metadata(created_at=time.time() - age, **settings))  # type: ignore[call-overload]
        for age in (0, 6)
    }
    assert 0 < seconds_left(left[0]) <= 5
    with pytest.raises(RunOver, match="expired"):
        seconds_left(left[6])


def test_what_cannot_be_read_is_answered(
    coordinator: Any, here: _Here, experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = coordinator.run(experiment)
    for limit, value in (("LARGEST_MESSAGE_BYTES", 100), ("MOST_OBJECTS", 1)):
        asked = run.ask(here.home.path.name)
        with monkeypatch.context() as patch:
            patch.setattr(messages, limit, value)
            message = here.take()
        here.send(message, here.desk.answer(message))
        assert run.answer(asked).code == "wire"


def test_a_reply_that_the_server_does_not_take_for_its_size_is_answered_by_a_failure(
    coordinator: Any, here: _Here, experiment: Experiment
) -> None:
    run = coordinator.run(experiment)
    asked = run.ask(here.home.path.name)
    message = here.take()
    order = wire.unpack_order(message.content, wire.Kind.TRAIN)
    delta = {"w": np.ones(3, np.float32)}
    done = wire.Reply(site=here.line.site, run=order.run, round=1, attempt=0, delta=delta)
    large = Message(wire.pack_reply(done), reply_to=message)
    large.metadata.group_id = "x" * (9 * 2**20)
    here.send(message, Answered(reply=large, order=order))
    assert run.answer(asked).code == "wire"
    assert here.events() == [("failed", ""), ("sent", "")]


def test_an_order_that_waits_is_noted_when_it_begins_to_and_when_that_changes(
    coordinator: Any, here: _Here, experiment: Experiment
) -> None:
    run, rules, site = coordinator.run(experiment), [], here.home.site_file
    settings = tomllib.loads(site.read_text())
    for attempt in range(5):
        if attempt == 2:
            site.write_text(tomli_w.dumps(settings | {"approve": "ask"}))
        if attempt == 4:
            site.write_text(
                tomli_w.dumps(settings | {"limits": {"least_free_gb": 0.0, "order_seconds": 0.2}})
            )
        asked = run.ask(here.home.path.name, "query.facts", attempt=attempt)
        message = here.take()
        here.send(message, here.desk.answer(message))
        answer = run.answer(asked)
        rules.append(answer.rule or answer.code)
    assert rules == ["disk", "disk", "approval_pending", "approval_pending", "worker"]
    assert here.events() == [
        ("received", ""), ("refused", "disk"), ("sent", ""), ("refused", "approval_pending"), ("sent", ""),
        ("received", ""), ("worker-lost", ""), ("sent", ""),
    ]  # fmt: skip
