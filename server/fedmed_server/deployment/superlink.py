"""The process that sites reach: Flower's SuperLink behind two listeners, ``python -m fedmed_server.deployment.superlink HOME``.

The public listener asks for a certificate of the consortium's authority and serves sites alone, through the guard. The
private one is on the loopback address and takes the server's own processes.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import ssl
import sys
from collections.abc import Coroutine, Iterator
from concurrent import futures
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import uvicorn
import uvloop
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from fedmed_common import logs
from fedmed_common.cli import ENVIRONMENT
from fedmed_common.errors import FedmedError
from fedmed_common.processes import allow_many_open_files
from fedmed_server.deployment import shelf
from fedmed_server.deployment.admission import Admission
from fedmed_server.deployment.bulk import Bulk
from fedmed_server.deployment.guard import ControlGuard, Guard
from fedmed_server.deployment.home import PRIVATE_HOST, ServerHome, ServerSettings

if TYPE_CHECKING:
    from starlette.types import ASGIApp

_LOOK_SECONDS = 1.0
_LAST_REQUESTS_SECONDS = 2
_KEEP_ALIVE_SECONDS = 75
_MOST_CONNECTIONS = 8000
"""A site at work has six."""

_NEW_OBJECTS = 100_000
_TURN_SECONDS = 5e-4
"""A request of a run goes from thread to thread a dozen times, and waits so long at each where another thread computes."""

_log = logging.getLogger(__name__)


def main() -> int:
    """Serve until a signal asks to stop; the process's exit code."""
    home = ServerHome(Path(sys.argv[1]).absolute())
    os.environ.update(environment(home))
    os.umask(0o077)
    logs.set_up()
    allow_many_open_files()
    try:
        _carry_out(serve(home))
    except FedmedError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    return 0


def _carry_out(served: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(served)


def environment(home: ServerHome) -> dict[str, str]:
    """What Flower reads before it is imported: its folder lies in the home, it calls no other host and installs nothing."""
    return {
        **ENVIRONMENT,
        "FLWR_HOME": str(home.flower),
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    }


async def serve(home: ServerHome) -> None:
    """Open both ports and the health service, and keep them open until a signal comes.

    Raises:
        FedmedError: the home is not complete, or a port cannot be opened.
    """
    from fedmed_server.deployment import flower_superlink

    _quieten_flower()
    home.prepare()
    settings = home.settings()
    app, fleet, nodes = flower_superlink.build(home)
    admission = Admission(home, nodes)
    await admission.look()
    shelf.sweep(home.bulk)
    guard = Guard(fleet, admission, Bulk(home.bulk), body_bytes=settings.limits.body_mb * 2**20)
    log_config = flower_superlink.log_config(logging.INFO)
    private = _private(home, settings, ControlGuard(app), log_config)
    public = _public(home, settings, guard, log_config)
    _spare_collections()
    sys.setswitchinterval(_TURN_SECONDS)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    with _health(settings) as serving:
        await _run(private, public, admission, stop, serving)
    await admission.look()


def _spare_collections() -> None:
    """What was imported and built stays: each search for garbage through all of it would hold up every site for a while."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_NEW_OBJECTS)


def _quieten_flower() -> None:
    """Flower's records go the way of all others, without those of every single call, and each once."""
    flower = logging.getLogger("flwr")
    flower.handlers.clear()
    flower.setLevel(logging.INFO)


async def _run(
    private: uvicorn.Server,
    public: uvicorn.Server,
    admission: Admission,
    stop: asyncio.Event,
    serving: health.HealthServicer,
) -> None:
    """The private listener first: it starts Flower. One that ends, for whatever reason, ends the other.

    It has a thread and a loop of its own, so that what a run asks there does not wait behind every site.
    """
    running: list[asyncio.Task[Any]] = []
    listeners = [private, public]
    try:
        for listener, served in (
            (private, asyncio.to_thread(_carry_out, private.serve())),
            (public, public.serve()),
        ):
            running.append(asyncio.create_task(served))
            while not listener.started and not running[-1].done():
                await asyncio.sleep(0.02)
        if not any(task.done() for task in running):
            serving.set("", health_pb2.HealthCheckResponse.SERVING)
            running += [asyncio.create_task(stop.wait()), asyncio.create_task(_look(admission))]
            await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
    finally:
        serving.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
        for listener in reversed(listeners):
            listener.should_exit = True
        for task in running[len(listeners) :]:
            task.cancel()
        ends = await asyncio.gather(*running, return_exceptions=True)
    for end in ends:
        if isinstance(end, BaseException) and not isinstance(end, asyncio.CancelledError):
            raise FedmedError(f"the server's listeners ended: {end!r}") from end


async def _look(admission: Admission) -> None:
    """Once a second. What goes wrong is said once and tried again: a full disk must not end the sites' connections."""
    problem = ""
    while True:
        try:
            await admission.look()
            problem = ""
        except Exception as error:
            if type(error).__name__ != problem:
                _log.exception("the sites' states cannot be looked at; the server goes on")
            problem = type(error).__name__
        await asyncio.sleep(_LOOK_SECONDS)


def _public(
    home: ServerHome, settings: ServerSettings, app: ASGIApp, log_config: dict[str, Any]
) -> uvicorn.Server:
    """Without a proxy in front, whoever has no certificate of the authority does not get to say a word."""
    certificates = ssl.CERT_NONE if settings.public.behind_proxy else ssl.CERT_REQUIRED
    config = _config(home, app, log_config, settings.public.host, settings.public.port)
    config.ssl_cert_reqs, config.ssl_ca_certs = certificates, str(home.authority)
    config.limit_concurrency = _MOST_CONNECTIONS
    return _listener(home, config)


def _private(
    home: ServerHome, settings: ServerSettings, app: ASGIApp, log_config: dict[str, Any]
) -> uvicorn.Server:
    config = _config(home, app, log_config, PRIVATE_HOST, settings.private.port)
    config.lifespan = "on"
    return _listener(home, config)


def _config(
    home: ServerHome, app: ASGIApp, log_config: dict[str, Any], host: str, port: int
) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        host=host,
        port=port,
        lifespan="off",
        ws="none",
        log_config=log_config,
        access_log=False,
        server_header=False,
        ssl_certfile=str(home.certificate),
        ssl_keyfile=str(home.key),
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=_LAST_REQUESTS_SECONDS,
    )


def _listener(home: ServerHome, config: uvicorn.Config) -> uvicorn.Server:
    try:
        config.load()
    except OSError as error:
        raise FedmedError(
            f"the certificates and the key in {home.certificate.parent} cannot be used: {error}"
        ) from error
    if config.ssl is not None:
        config.ssl.minimum_version = ssl.TLSVersion.TLSv1_2
    return _Listener(config)


class _Listener(uvicorn.Server):
    """Leaves the process's signals alone: two of them share a process."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@contextmanager
def _health(settings: ServerSettings) -> Iterator[health.HealthServicer]:
    """gRPC's usual health service."""
    address = f"{settings.health.host}:{settings.health.port}"
    server = grpc.server(futures.ThreadPoolExecutor(2))
    servicer = health.HealthServicer()
    servicer.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    try:
        server.add_insecure_port(address)
    except RuntimeError:
        raise FedmedError(f"the port of the health service, {address}, cannot be opened") from None
    server.start()
    try:
        yield servicer
    finally:
        server.stop(grace=None)


if __name__ == "__main__":
    sys.exit(main())
