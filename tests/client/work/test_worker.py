"""The worker as a real process: it answers as the ClientApp does, and no fault of it makes an order run twice."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from flwr.app import Context, Message, RecordDict
from grpc_health.v1 import health_pb2, health_pb2_grpc

from fedmed_client.app import home_of, make_client_app
from fedmed_client.ledger import Ledger
from fedmed_client.site.audit import AuditLog
from fedmed_client.site.home import SiteFolder
from fedmed_client.work import frames
from fedmed_client.work.channel import WorkerChannel
from fedmed_common import params, privacy, wire
from fedmed_common.config import Experiment, Privacy, Task
from fedmed_common.errors import WorkerLost
from fedmed_common.models import build_model
from fedmed_common.site_config import Limits
from fedmed_server.gate import Expected, admit, allowed_metrics

Ask = Callable[..., Message]
Start = Callable[..., subprocess.Popen[bytes]]


def _reply(message: Message, experiment: Experiment | None = None) -> wire.Reply:
    template = params.from_model(build_model(experiment)) if experiment else None
    return wire.unpack_reply(message.content, template)


def _content(message: Message) -> list[tuple[str, bytes]]:
    """All bytes of a reply's content."""
    records = message.content.array_records.values()
    arrays = [(name, array.data) for record in records for name, array in record.items()]
    return [(name, record.deflate()) for name, record in message.content.items()] + arrays


def _events(home: Path, run: str) -> list[str]:
    AuditLog(home).verify()
    lines = [json.loads(line) for line in (home / "audit.log").read_text().splitlines()]
    return [line["event"] for line in lines if line["run"] == run]


class _Background:
    """A message that is carried in a thread; ``stepped`` is set at its first step."""

    def __init__(self, channel: WorkerChannel, message: Message, deadline_seconds: float = 60) -> None:
        self.stepped = threading.Event()
        with_steps = {"on_step": lambda _step: self.stepped.set(), "deadline_seconds": deadline_seconds}
        pool = ThreadPoolExecutor(1)
        self.reply = pool.submit(channel.carry, message, **with_steps)
        pool.shutdown(wait=False)


def test_an_answer_through_the_worker_is_that_of_the_app_bit_for_bit(
    served: Path, ask: Ask, experiment: Experiment, tmp_path: Path
) -> None:
    here = make_client_app(lambda _context: replace(home_of(served), folder=tmp_path, outbox=None))
    for kind in set(wire.Kind) - {wire.Kind.STATISTICS, wire.Kind.SECURE}:
        message = ask(kind=kind, attempt=2)
        template = experiment if kind is wire.Kind.TRAIN else None
        carried = WorkerChannel(served).carry(message)
        ours = _reply(here(message, Context(1, 5, {}, RecordDict(), {})), template)
        theirs = _reply(carried, template)
        assert replace(theirs, seconds={}, delta={}) == replace(ours, seconds={}, delta={})
        assert theirs.code == ""
        assert [(name, array.tobytes()) for name, array in theirs.delta.items()] == [
            (name, array.tobytes()) for name, array in ours.delta.items()
        ]
        assert carried.metadata.reply_to_message_id == message.metadata.message_id


def test_asked_twice_the_same_bytes_and_the_gate_takes_them(
    served: Path, ask: Ask, experiment: Experiment
) -> None:
    channel = WorkerChannel(served)
    first, second, later = (channel.carry(ask(run="twice", attempt=number)) for number in (0, 0, 7))
    assert _content(first) == _content(second)
    expected = Expected(
        site="alpha",
        run="twice",
        round=1,
        attempt=7,
        kind=wire.Kind.TRAIN,
        classes=("disc",),
        metrics=allowed_metrics(wire.Kind.TRAIN, Task(classes=("disc",))),
        template=params.from_model(build_model(experiment)),
    )
    admitted = admit(later.content, expected)
    assert replace(admitted, attempt=0, delta={}) == replace(_reply(first, experiment), delta={})
    assert _content(later)[1:] == _content(first)[1:]
    assert _events(served, "twice") == ["sealed"]


@pytest.mark.parametrize("by", ["the link", "the deadline"])
def test_an_order_is_left_at_its_next_step(
    served: Path, ask: Ask, long_experiment: Experiment, experiment: Experiment, by: str
) -> None:
    channel = WorkerChannel(served)
    channel.carry(ask(kind="query.facts"))
    message = ask(run=by, experiment=long_experiment)
    carried = _Background(channel, message, 1.0 if by == "the deadline" else 60.0)
    assert carried.stepped.wait(60)
    if by == "the link":
        channel.cancel()
    assert _reply(carried.reply.result(60)).code == "interrupted"
    assert _reply(channel.carry(ask(run=by)), experiment).code == ""
    assert _events(served, by) == ["cancelled", "sealed"]


def test_an_order_is_finished_though_the_link_is_gone(served: Path, ask: Ask, experiment: Experiment) -> None:
    message = ask(run="left alone")
    with grpc.insecure_channel(frames.address(SiteFolder(served).worker_socket)) as connection:
        call = connection.stream_stream(frames.CARRY)(
            frames.pieces(message, SiteFolder(served).received, order="left"), wait_for_ready=True
        )
        next(iter(call))
        call.cancel()
    assert _reply(WorkerChannel(served).carry(message), experiment).code == ""
    assert _events(served, "left alone") == ["sealed"]


def test_what_a_link_that_is_gone_asked_is_left_for_the_next_one(
    served: Path, ask: Ask, long_experiment: Experiment, experiment: Experiment
) -> None:
    """By the run's name, or with the same order as it was asked anew."""
    for by in ("its run", "its successor"):
        message, channel = ask(run=by, experiment=long_experiment), WorkerChannel(served)
        with grpc.insecure_channel(frames.address(SiteFolder(served).worker_socket)) as connection:
            call = connection.stream_stream(frames.CARRY)(
                frames.pieces(message, SiteFolder(served).received, order="left"), wait_for_ready=True
            )
            while frames.read_head(next(call)).get("step", 0) < 1:
                pass
            call.cancel()
        if by == "its run":
            channel.leave(by)
        else:
            again = _Background(channel, ask(run=by, experiment=long_experiment, attempt=1))
            while not again.reply.done():
                channel.cancel()
                time.sleep(0.05)
            assert _reply(again.reply.result(60)).code == "interrupted"
        assert _reply(channel.carry(ask(run=f"after {by}")), experiment).code == ""
        assert _events(served, by)[:1] == ["cancelled"]


def test_an_order_waits_for_a_worker_that_is_still_being_started_and_does_not_end_it(
    home: Path, ask: Ask, worker: Start
) -> None:
    process = worker(home)
    with pytest.raises(WorkerLost, match="not ready"):
        WorkerChannel(home).carry(ask(kind="query.facts"), deadline_seconds=0.01)
    assert _reply(WorkerChannel(home).carry(ask(kind="query.facts"))).code == ""
    assert process.poll() is None


def test_a_reply_larger_than_grpc_takes_comes_in_pieces(
    served: Path, ask: Ask, experiment: Experiment
) -> None:
    model = experiment.model.model_copy(update={"channels": (512, 512)})
    large = experiment.model_copy(update={"model": model})
    size = sum(array.nbytes for array in params.from_model(build_model(large)).values())
    assert size > 5_000_000
    reply = _reply(WorkerChannel(served).carry(ask(experiment=large)), large)
    assert sum(array.nbytes for array in reply.delta.values()) == size


def test_only_this_user_opens_the_socket_and_health_tells_that_it_serves(served: Path, ask: Ask) -> None:
    WorkerChannel(served).carry(ask(kind="query.facts"))
    socket = SiteFolder(served).worker_socket
    assert socket.parent.stat().st_mode & 0o077 == 0
    with grpc.insecure_channel(frames.address(socket)) as connection:
        answer = health_pb2_grpc.HealthStub(connection).Check(health_pb2.HealthCheckRequest(), timeout=10)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_a_second_worker_of_a_folder_says_so_and_ends(served: Path, ask: Ask, worker: Start) -> None:
    WorkerChannel(served).carry(ask(kind="query.facts"))
    assert worker(served).wait(60) == 2
    assert "another process is at work" in (served / "log" / "worker.log").read_text()
    assert _reply(WorkerChannel(served).carry(ask(kind="query.facts"))).code == ""


def test_nothing_of_an_exception_leaves_the_worker(served: Path, ask: Ask) -> None:
    site = served / "site.toml"
    content = site.read_text()
    channel = WorkerChannel(served)
    try:
        site.write_text(content.replace('"1"', '"Jane^Doe"'))
        failed = channel.carry(ask(run="failed"))
        site.write_text("Jane^Doe")
        unknown = channel.carry(ask(run="unknown"))
    finally:
        site.write_text(content)
    assert (_reply(failed).code, _reply(failed).site) == ("labels", "alpha")
    assert (_reply(unknown).code, _reply(unknown).site) == ("config", "unknown")
    assert b"Jane" not in b"".join(part for _, part in _content(failed) + _content(unknown))
    other = channel.carry(ask(kind="query.facts"))
    assert _reply(other).code == ""


def test_a_worker_killed_after_the_seal_answers_with_the_sealed_bytes(
    home: Path, ask: Ask, worker: Start, experiment: Experiment, tmp_path: Path
) -> None:
    plan, fired = tmp_path / "plan.json", tmp_path / "fired"
    fired.mkdir()
    fault = {
        "point": "after-seal",
        "target": str(home / "run" / "worker.pid"),
        "signal": "SIGKILL",
        "id": "f",
    }
    plan.write_text(json.dumps({"faults": [fault], "fired": str(fired)}))
    process = worker(home, FEDMED_FAILPOINTS=str(plan))
    with pytest.raises(WorkerLost):
        WorkerChannel(home).carry(ask())
    assert process.wait(10) == -signal.SIGKILL
    (sealed,) = (home / "outbox").rglob("*.safetensors")
    content = sealed.read_bytes()
    worker(home)
    first, second = (WorkerChannel(home).carry(ask(attempt=1)) for _ in range(2))
    assert _content(first) == _content(second)
    assert sealed.read_bytes() == content
    assert _reply(first, experiment).code == ""


def test_what_a_killed_worker_had_begun_to_spend_stays_spent(
    home: Path, ask: Ask, worker: Start, experiment: Experiment, tmp_path: Path
) -> None:
    """Killed after the spend was written and before anything left; asked again with the same order, it spends anew, once."""
    plan, fired = tmp_path / "plan.json", tmp_path / "fired"
    fired.mkdir()
    fault = {
        "point": "training",
        "target": str(home / "run" / "worker.pid"),
        "signal": "SIGKILL",
        "id": "f",
    }
    plan.write_text(json.dumps({"faults": [fault], "fired": str(fired)}))
    settings = Privacy(epsilon=8.0, sampling_rate=0.5, noise_multiplier=2.0)
    private = experiment.model_copy(update={"privacy": settings})
    process = worker(home, FEDMED_FAILPOINTS=str(plan))
    with pytest.raises(WorkerLost):
        WorkerChannel(home).carry(ask(experiment=private))
    assert process.wait(10) == -signal.SIGKILL
    assert not list((home / "outbox").rglob("*.safetensors"))
    assert [row.attempt for row in Ledger(home).read()] == [0]
    worker(home)
    first, second = (WorkerChannel(home).carry(ask(experiment=private, attempt=1)) for _ in range(2))
    assert _content(first) == _content(second)
    rows = Ledger(home).read()
    assert [row.attempt for row in rows] == [0, 1]
    reply = _reply(first, private)
    assert reply.epsilon_spent == privacy.epsilon([row.spent for row in rows], settings.delta)
    assert (reply.code, reply.metrics, reply.seconds) == ("", {}, {})
    assert _events(home, "run") == ["reserved", "reserved", "sealed"]


def test_a_worker_killed_in_a_step_is_missed_at_once_and_the_next_does_the_work(
    home: Path, ask: Ask, worker: Start, experiment: Experiment, long_experiment: Experiment
) -> None:
    process = worker(home)
    carried = _Background(WorkerChannel(home), ask(experiment=long_experiment))
    assert carried.stepped.wait(60)
    process.kill()
    with pytest.raises(WorkerLost, match="the worker ended"):
        carried.reply.result(60)
    worker(home)
    assert _reply(WorkerChannel(home).carry(ask()), experiment).code == ""


def test_a_worker_that_hangs_is_ended_hard(
    home: Path, ask: Ask, worker: Start, long_experiment: Experiment
) -> None:
    """In a folder with a path too long for a socket, so that both find the short one."""
    deep = home.rename(home.parent / ("x" * 120))
    process = worker(deep)
    carried = _Background(WorkerChannel(deep, Limits(stall_seconds=0.5)), ask(experiment=long_experiment))
    assert carried.stepped.wait(60)
    os.kill(process.pid, signal.SIGSTOP)
    with pytest.raises(WorkerLost, match="no progress"):
        carried.reply.result(60)
    assert process.wait(60) == -signal.SIGKILL
    shutil.rmtree(SiteFolder(deep).worker_socket.parent)
