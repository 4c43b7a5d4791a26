"""The process that speaks to the coordinator: ``python -m fedmed_client.link.link HOME``.

It asks for orders, has the worker carry them out, and sends the answers. One link runs in a home. It ends when it is told to,
or with the exit code of a :class:`ConnectionProblem` that does not pass.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from pathlib import Path

from flwr.app import Message

from fedmed_client.link.flower import NotTaken, RunOver
from fedmed_client.link.line import Line, Stopped
from fedmed_client.link.orders import Answered, Desk
from fedmed_client.link.status import Standing, Status
from fedmed_client.site.audit import AuditLog
from fedmed_client.site.home import SiteFolder
from fedmed_common import identity, logs
from fedmed_common.children import write_pid
from fedmed_common.errors import ConnectionProblem, FedmedError
from fedmed_common.failpoints import reach

_BUSY_POLL_SECONDS, IDLE_POLL_SECONDS = 0.5, 1.0
_BUSY_SECONDS = 30.0
_log = logging.getLogger(__name__)


class Link:
    """A site's link, until ``stop`` is set."""

    def __init__(self, home: SiteFolder, stop: threading.Event) -> None:
        self._home, self._stop = home, stop
        self._status = Status(home, home.connection().address)
        self._audit = AuditLog(home.path)

    def run(self) -> None:
        """Work for the coordinator.

        Raises:
            ConfigError, ProvisionError: the home is not complete.
            ConnectionProblem: one that does not pass by itself.
        """
        line: Line | None = None
        try:
            line = Line(self._home, self._status, self._stop)
            line.open()
            self._audit.append("connected", address=line.reach.address)
            self._warn(line)
            self._serve(line, Desk(self._home, line, self._status, self._stop))
        except Stopped:
            self._status.say(Standing(state="stopped"))
        except ConnectionProblem as problem:
            self._status.say(Standing.of(problem, "refused"))
            raise
        finally:
            if line is not None:
                line.close()

    def _serve(self, line: Line, desk: Desk) -> None:
        busy_until = 0.0
        while not self._stop.is_set():
            line.refresh()
            message = desk.take()
            if message is None:
                busy = time.monotonic() < busy_until
                self._stop.wait(line.pause(_BUSY_POLL_SECONDS if busy else IDLE_POLL_SECONDS))
                continue
            try:
                answered = desk.answer(message)
                if answered is not None:
                    self._send(line, desk, message, answered)
            except RunOver as over:
                _log.info("an answer is dropped: %s", over)
            busy_until = time.monotonic() + _BUSY_SECONDS
        raise Stopped

    def _send(self, line: Line, desk: Desk, message: Message, answered: Answered) -> None:
        try:
            line.push(answered.reply)
        except NotTaken as problem:
            _log.error("%s", problem)
            smaller = desk.instead(message, answered)
            if smaller is None:
                raise
            answered = smaller
            line.push(answered.reply)
        desk.sent(answered)
        if answered.order is not None:
            reach("after-send", round=answered.order.round, site=line.site)

    def _warn(self, line: Line) -> None:
        warning = identity.expiry_warning(
            line.reach.certificate, "this site's certificate", "ask the coordinator to renew it"
        )
        if warning:
            _log.warning("%s", warning)


def main() -> int:
    """Work for the home that the command line names; the exit code. Ctrl-C is left to the supervisor."""
    stop = threading.Event()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    os.umask(0o077)
    logs.set_up(logging.INFO)
    for library in ("httpx", "httpcore", "flwr"):
        logging.getLogger(library).setLevel(logging.WARNING)
    home = SiteFolder(Path(sys.argv[1]).absolute())
    try:
        with home.locked("link"):
            write_pid(home.path, "link")
            Link(home, stop).run()
    except FedmedError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
