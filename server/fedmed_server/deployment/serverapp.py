"""The ServerApp of deployed runs, and the process that carries one out: ``python -m fedmed_server.deployment.serverapp``.

The process takes the place of Flower's own: it installs no bundle and runs no code but what is installed, ends at once when
its Flower run is over, and leaves nothing to Flower that a crash could lose.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedmed_common import children, logs
from fedmed_common.bundle import RUN_KEY
from fedmed_common.errors import FedmedError, Interrupted
from fedmed_server.deployment import runs
from fedmed_server.deployment.flower_client import SuperLinkAway, root_certificates
from fedmed_server.deployment.flower_runtime import Outcome, TaskGone, TaskSession
from fedmed_server.deployment.home import PRIVATE_HOST, ServerHome
from fedmed_server.deployment.launcher import TOKEN

ROLE = "serverapp"
_HEARTBEAT_SECONDS = 5.0
_LAST_SECONDS = 20.0
_LOUD = ("flwr", "httpx", "httpcore", "mlflow", "alembic", "matplotlib", "fontTools")
_log = logging.getLogger("fedmed.run")

stop = threading.Event()
"""Set when this process's run is to end before its time."""

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Carry out the run that the Flower run is for."""
    from fedmed_server.deployment.conduct import conduct

    home = ServerHome(Path(os.environ["FEDMED_HOME"]))
    conduct(grid, home, str(context.run_config[RUN_KEY]), stop, lambda _outcome: None)


class _Task:
    """The task of this process, from its first heartbeat to its output."""

    def __init__(self, home: ServerHome, token: str) -> None:
        self._home, self._token = home, token
        self._session = TaskSession(home, token)
        self._over = threading.Event()
        self._pushed = False

    def carry_out(self) -> int:
        """The process's exit code: 0 where Flower knows how the task ended."""
        try:
            context, run, _ = self._session.pull()
        except (TaskGone, SuperLinkAway) as error:
            _log.warning("%s", error)
            return 1
        _write_log_to(self._home.run(str(context.run_config[RUN_KEY])) / runs.LOG)
        threading.Thread(target=self._live, name="heartbeat", daemon=True).start()
        from fedmed_server.deployment.conduct import conduct
        from fedmed_server.deployment.grid import GuardedGrid
        from fedmed_server.deployment.shelf import Shelf

        shelf = Shelf(self._home.bulk, run.run_id)
        certificates = root_certificates(self._home)
        grid = GuardedGrid(
            self._home.private_address(), shelf, token=self._token, root_certificates=certificates
        )
        grid.set_run(run)
        try:
            conduct(grid, self._home, str(context.run_config[RUN_KEY]), stop, self._done)
            return self._push("completed", "")
        except Interrupted as interrupted:
            _log.warning("%s", interrupted)
            return self._push("stopped", interrupted.code)
        except FedmedError as error:
            _log.error("%s", error)
            return self._push("failed", error.code)
        except Exception:
            _log.exception("the run cannot go on")
            return self._push("failed", "internal")
        finally:
            self._over.set()
            shelf.close()

    def _done(self, outcome: Outcome) -> None:
        """Nothing is asked of sites any more; what is left to do is the server's own."""
        self._over.set()
        self._push(outcome, "")

    def _push(self, outcome: Outcome, details: str) -> int:
        if self._pushed:
            return 0
        try:
            self._session.push(outcome, details)
        except SuperLinkAway as away:
            _log.warning("%s", away)
            return 1
        self._pushed = True
        return 0

    def _live(self) -> None:
        """Tell Flower that this process lives; end it when it is to stop and does not, whatever it hangs on."""
        asked = 0.0
        while not self._over.wait(_HEARTBEAT_SECONDS):
            if stop.is_set():
                asked = asked or time.monotonic()
                if time.monotonic() - asked > _LAST_SECONDS:
                    _log.error("the run was to stop and did not; the process ends")
                    os._exit(1)
            try:
                self._session.heartbeat()
            except SuperLinkAway:
                continue
            except TaskGone as gone:
                _log.warning("%s", gone)
                stop.set()


def process() -> int:
    """Carry out the task whose token is in the environment; the process's exit code."""
    token = os.environ.pop(TOKEN)
    home = ServerHome(Path(os.environ["FEDMED_HOME"]))
    _keep_loopback_direct()
    logs.set_up(logging.INFO)
    for name in _LOUD:
        logging.getLogger(name).setLevel(logging.WARNING)
    signal.signal(signal.SIGTERM, lambda _number, _frame: stop.set())
    children.write_pid(home.path, ROLE)
    return _Task(home, token).carry_out()


def _keep_loopback_direct() -> None:
    """Flower's server is on this machine; a proxy of the environment is for the tracking store."""
    hosts = [os.environ[name] for name in ("no_proxy", "NO_PROXY") if os.environ.get(name)]
    for name in ("no_proxy", "NO_PROXY"):
        os.environ[name] = ",".join([*hosts, PRIVATE_HOST])


def _write_log_to(file: Path) -> None:
    """Have all that this process says, however it says it, go to the run's own log."""
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
        os.dup2(descriptor, stream.fileno())
    os.close(descriptor)


if __name__ == "__main__":
    exit_code = process()
    logging.shutdown()
    # Threads that still talk to a tracking store must not hold up the end, and need not: what they send can be sent again.
    os._exit(exit_code)
