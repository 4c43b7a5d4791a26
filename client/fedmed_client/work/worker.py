"""The process that trains: ``python -m fedmed_client.work.worker HOME``.

It imports torch once, keeps networks and cohorts between orders, and runs the site's ClientApp on each message that the
link hands it over a Unix socket. It does one order at a time, and finishes it also when the link is gone: the reply is
sealed, and whoever asks again finds it.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc
from flwr.app import Context, Message, RecordDict
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from fedmed_client import pulse
from fedmed_client.site.health import make_private
from fedmed_client.site.home import SiteFolder
from fedmed_client.work import frames, limits
from fedmed_common import logs, wire
from fedmed_common.children import write_pid
from fedmed_common.config import Experiment, Site
from fedmed_common.errors import FedmedError, Interrupted, WireError, WorkerLost

_LOOK_SECONDS = 0.05
_THREADS = 8
_SMALL = Experiment.model_validate(
    {
        "name": "small",
        "rounds": 1,
        "task": {"classes": ["any"], "dimensions": 2},
        "data": {"patch": [16, 16]},
        "model": {"channels": [2, 4]},
    }
)
_log = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True, eq=False)
class _Order:
    """A message that is carried out, or waits for its turn."""

    name: str
    run: str
    message: Message
    cancelled: bool = False
    step: int = 0


class Orders:
    """Carries out messages one by one. Their beats and steps are heard, and each can be left at its next beat, also when the
    link that handed it over is gone."""

    def __init__(self, folder: Path) -> None:
        from fedmed_client.app import home_of, make_client_app

        def find_home(_context: Context) -> Any:
            self._beat()
            return replace(home_of(folder), on_step=self._on_step)

        self._home, self._app = SiteFolder(folder), make_client_app(find_home)
        self._one_by_one = ThreadPoolExecutor(1, thread_name_prefix="order")
        self._known: list[_Order] = []
        self._current: _Order | None = None
        self._beats = 0

    def carry(self, sent: Iterator[bytes], call: grpc.ServicerContext) -> Iterator[bytes]:
        """gRPC: the frames of a message in; signs of progress, then the frames of its reply out."""
        announced = frames.read_head(next(sent))
        message = frames.joined(announced, sent, self._home.received)
        order = _Order(name=str(announced["order"]), run=_run_of(message), message=message)
        self._known.append(order)
        done = self._one_by_one.submit(self._carry_out, order)
        done.add_done_callback(lambda _: self._known.remove(order))
        yield from self._signs(order, done, call.is_active)
        if done.done():
            yield from frames.pieces(done.result(), self._home.outbox)
        else:
            done.cancel()

    def cancel(self, sent: bytes, _call: grpc.ServicerContext) -> bytes:
        """gRPC: leave a message, or a run, at its next beat; with a message all that is done for its run."""
        asked = frames.read_head(sent)
        runs = {order.run for order in self._known if order.name == asked.get("order")} | {asked.get("run")}
        for order in list(self._known):
            order.cancelled |= order.run in runs
        return frames.head()

    def _signs(
        self, order: _Order, done: Future[Message], is_listening: Callable[[], bool]
    ) -> Iterator[bytes]:
        """A frame at first and whenever something moved, until the order is done; also while it waits for another."""
        beats = -1
        while not done.done() and is_listening():
            if beats != self._beats:
                beats = self._beats
                yield frames.head(step=order.step)
            wait([done], _LOOK_SECONDS)

    def _carry_out(self, order: _Order) -> Message:
        self._current = order
        metadata = order.message.metadata
        context = Context(metadata.run_id, metadata.dst_node_id, {}, RecordDict(), {})
        try:
            with pulse.watched(self._beat):
                return self._app(order.message, context)
        except Exception as error:  # Flower's own, of a message that the app does not know
            _log.error("a message was refused by Flower: %s", type(error).__name__)
            unknown = wire.Reply(site="unknown", run="", round=0, attempt=0, code="wire")
            return Message(wire.pack_reply(unknown), reply_to=order.message)
        finally:
            self._current = None

    def _on_step(self, _site: str, step: int) -> None:
        if self._current is not None:
            self._current.step = step
        self._beat()

    def _beat(self) -> None:
        self._beats += 1
        if self._current is not None and self._current.cancelled:
            raise Interrupted("the order was cancelled")


def _run_of(message: Message) -> str:
    """The run that the message's order is of; of what is none, a name that no run has."""
    try:
        kind = wire.Kind(message.metadata.message_type)
        return wire.unpack_order(message.content, kind, arrays=False).run
    except (ValueError, WireError):
        return ""


def warm(site: Site) -> None:
    """One step of a small network on the site's device, so that what torch imports and starts late is there."""
    import torch

    from fedmed_client.train import make_optimizer
    from fedmed_client.workbench import pick_device
    from fedmed_common.models import build_model
    from fedmed_common.tasks import build_task

    device = pick_device("auto", gpu=site.device.gpu != "none")
    model = build_model(_SMALL).to(device)
    optimizer = make_optimizer(model, _SMALL.train, _SMALL.train.learning_rate)
    image, label = torch.zeros(2, 1, 16, 16), torch.zeros(2, 16, 16, dtype=torch.int64)
    annotated = torch.ones(2, 1, dtype=torch.bool)
    build_task(_SMALL).objective(model, image.to(device), label.to(device), annotated.to(device)).backward()  # type: ignore[no-untyped-call]
    optimizer.step()


def serve(folder: Path) -> None:
    """Take orders until the process is ended.

    Raises:
        ConfigError: the site's file is wrong.
        ProvisionError: another worker is at work here.
        WorkerLost: the socket cannot be made.
    """
    home = SiteFolder(folder)
    site = home.site()
    limits.limit_memory(site.limits)
    with home.locked("worker"):
        write_pid(folder, "worker")
        warm(site)
        server = _server(Orders(folder), home.worker_socket.absolute())
        server.start()
        server.wait_for_termination()


def _server(orders: Orders, socket: Path) -> grpc.Server:
    handlers = {
        "Carry": grpc.stream_stream_rpc_method_handler(orders.carry),
        "Cancel": grpc.unary_unary_rpc_method_handler(orders.cancel),
    }
    server = grpc.server(ThreadPoolExecutor(_THREADS))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(frames.SERVICE, handlers),))
    state = health.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(state, server)
    state.set("", health_pb2.HealthCheckResponse.SERVING)
    make_private(socket.parent)
    socket.unlink(missing_ok=True)
    if not server.add_insecure_port(frames.address(socket)):
        raise WorkerLost(f"the socket {socket} cannot be made\n  fix: check that the folder can be written")
    return server


def main() -> None:
    """Serve the folder that the command line names; Ctrl-C is left to the supervisor."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.umask(0o077)
    logs.set_up()
    try:
        serve(Path(sys.argv[1]).absolute())
    except FedmedError as error:
        _log.error("%s", error)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
