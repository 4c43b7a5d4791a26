"""``fedmed serve``: the coordinator's server, until it is told to stop.

This process keeps the SuperLink's process alive, and runs the keeper and the launcher in threads of its own. When it is told
to stop, the runs' processes end first, then the SuperLink; runs go on from their checkpoints at the next start.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from fedmed_common import children, identity
from fedmed_common.errors import ConfigError, FedmedError
from fedmed_server.deployment.home import PRIVATE_HOST, ServerHome, ServerSettings
from fedmed_server.provision.registry import load_registry

WRONG_HOME = 2
"""The SuperLink's exit code where the home is not as it must be: starting it again would not help."""

_GRACE_SECONDS = 20.0
_log = logging.getLogger(__name__)


def serve_command(
    home: Annotated[
        Path, typer.Option(help="The server's folder, made by 'fedmed provision'.", envvar="FEDMED_HOME")
    ] = Path(),
) -> None:
    """Serve a consortium: sites connect, launched runs are carried out. Runs until it is told to stop."""
    from fedmed_server.deployment import superlink

    folder = ServerHome(home.absolute())
    settings = check(folder)
    os.environ.update(superlink.environment(folder))
    public = settings.public
    typer.echo(
        f"{settings.name}: sites connect at {public.host}, port {public.port}; stop with Ctrl-C or SIGTERM"
    )
    Server(folder).run()


def check(home: ServerHome) -> ServerSettings:
    """The settings, once all that the server needs is there; makes the folders and secrets that only it needs.

    Raises:
        ConfigError, ProvisionError: what is missing or wrong, and what to do.
    """
    settings = home.settings()
    load_registry(home.registry)
    identity.load_certificate(home.authority)
    identity.load_key(home.key)
    identity.load_signing_key(home.signing_key)
    certificate = identity.load_certificate(home.certificate)
    fix = "renew it with 'fedmed provision renew server', and start the server again"
    warning = identity.expiry_warning(certificate, "the server's certificate", fix)
    if warning:
        _log.warning("%s", warning)
    ports = {
        "public.port": (settings.public.host, settings.public.port),
        "private.port": (PRIVATE_HOST, settings.private.port),
        "health.port": (settings.health.host, settings.health.port),
    }
    for field, (host, port) in ports.items():
        _check_port(home.settings_file, field, host, port)
    home.prepare()
    return settings


class Server:
    """The processes and threads of a server."""

    def __init__(self, home: ServerHome) -> None:
        self._home = home
        self._stop = threading.Event()
        self._broken = False
        superlink = children.Child(
            role="superlink",
            command=(sys.executable, "-m", "fedmed_server.deployment.superlink", str(home.path)),
            final_codes=frozenset({WRONG_HOME}),
            log=_superlink_log(home),
        )
        self._supervisor = children.Supervisor(home.path, [superlink])

    def run(self) -> None:
        """Run until a signal comes.

        Raises:
            FedmedError: a part ended that must not.
        """
        from fedmed_server.deployment.keeper import Keeper
        from fedmed_server.deployment.launcher import Launcher

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._stop.set())
        children.write_pid(self._home.path, "serve")
        parts = [self._part(Keeper(self._home.path).run), self._part(Launcher(self._home.path).run)]
        # The SuperLink is there until the parts have ended: they tell it what has become of their runs.
        threading.Thread(target=self._end, args=(parts,), daemon=True).start()
        try:
            code = self._supervisor.run()
        finally:
            self._stop.set()
            for part in parts:
                part.join(_GRACE_SECONDS)
            children.pid_file(self._home.path, "serve").unlink(missing_ok=True)
        if code:
            raise FedmedError(
                f"the SuperLink cannot work with {self._home.path}; the end of {_superlink_log(self._home)} says why"
            )
        if self._broken:
            raise FedmedError("a part of the server ended with an error")

    def _part(self, work: Callable[[threading.Event], None]) -> threading.Thread:
        """A thread that does the work until the stop; where the work fails, all ends."""

        def run() -> None:
            try:
                work(self._stop)
            except Exception:
                _log.exception("the server stops, for a part of it failed")
                self._broken = True
            finally:
                self._stop.set()

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        return thread

    def _end(self, parts: list[threading.Thread]) -> None:
        self._stop.wait()
        for part in parts:
            part.join(_GRACE_SECONDS)
        self._supervisor.stop()


def _superlink_log(home: ServerHome) -> Path:
    return home.log / "superlink.log"


def _check_port(file: Path, field: str, host: str, port: int) -> None:
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise ConfigError(
            f"cannot listen at {host}, port {port}: {error.strerror}",
            file=file,
            field=field,
            fix="stop what listens there (another 'fedmed serve'?), or choose another port",
        ) from None
