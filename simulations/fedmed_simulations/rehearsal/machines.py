"""Programs that stand for machines: each in a process group of its own, so that all of it can be ended at once."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from fedmed_common import children
from fedmed_common.errors import FedmedError

FEDMED = (sys.executable, "-c", "from fedmed_common.cli import main; main()")
"""The ``fedmed`` command of this very installation."""

_POLL_SECONDS = 0.05


class Machine:
    """A program that runs until it is stopped; what it prints goes to ``log``."""

    def __init__(
        self, command: Sequence[str], *, log: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        self.log = log
        self._process = children.start(command, environment=environment, log=log, own_group=True)

    @property
    def pid(self) -> int:
        """Of the program, and of its process group."""
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """How it ended; None while it runs."""
        return self._process.poll()

    def stop(self, grace_seconds: float = 20.0) -> int:
        """End it as an administrator does, and whatever it leaves behind hard; its exit code."""
        code = children.stop(self._process, grace_seconds)
        self._end_group()
        return code

    def kill(self) -> None:
        """A power cut."""
        self._end_group()
        self._process.wait()

    def tail(self, lines: int = 15) -> str:
        """The last lines that it printed."""
        try:
            return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])
        except OSError:
            return ""

    def _end_group(self) -> None:
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            return


def fedmed(*arguments: str, environment: Mapping[str, str] | None = None, seconds: float = 300.0) -> str:
    """Run one ``fedmed`` command to its end; what it printed.

    Raises:
        FedmedError: it failed, with its own words.
    """
    done = subprocess.run(  # noqa: S603
        [*FEDMED, *arguments],
        env={**os.environ, **(environment or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    if done.returncode:
        raise FedmedError(
            f"'fedmed {' '.join(arguments)}' ended with {done.returncode}\n{done.stderr.strip()}"
        )
    return done.stdout


def free_ports(number: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody listens on at this moment."""
    sockets = [socket.socket() for _ in range(number)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]
    finally:
        for one in sockets:
            one.close()


def wait_for(
    condition: Callable[[], bool], what: str, seconds: float, machines: Sequence[Machine] = ()
) -> None:
    """Wait until ``condition`` holds.

    Raises:
        FedmedError: it does not within ``seconds``, or one of ``machines`` has ended; with what that one printed last.
    """
    end = time.monotonic() + seconds
    while not condition():
        for machine in machines:
            if machine.exit_code is not None:
                raise FedmedError(
                    f"{what}: {machine.log.stem} ended with {machine.exit_code}; it printed last:\n{machine.tail()}"
                )
        if time.monotonic() > end:
            told = "\n".join(f"{machine.log.stem} printed last:\n{machine.tail()}" for machine in machines)
            raise FedmedError(f"{what}: not within {seconds:g} s\n{told}")
        time.sleep(_POLL_SECONDS)
