"""Child processes that must be there: started, watched, started again when they end, and stopped together.

A child ends with its parent, however the parent ends (on Linux), and its pid lies in ``run/<role>.pid`` while it lives.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fedmed_common.files import write_atomically

_PR_SET_PDEATHSIG = 1
_POLL_SECONDS = 0.1
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Child:
    """What to run. ``final_codes``: exit codes after which it is not started again and the supervisor ends with them."""

    role: str
    command: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    final_codes: frozenset[int] = frozenset()
    log: Path | None = None


def pid_file(home: Path, role: str) -> Path:
    """Where the pid of a process of this home lies."""
    return home / "run" / f"{role}.pid"


def write_pid(home: Path, role: str) -> None:
    """Say that this process has the role."""
    file = pid_file(home, role)
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_atomically(file, str(os.getpid()).encode())


def start(
    command: Sequence[str],
    *,
    environment: Mapping[str, str] | None = None,
    log: Path | None = None,
    own_group: bool = False,
    stdin: int = subprocess.DEVNULL,
) -> subprocess.Popen[bytes]:
    """Start a process that ends with this one; its output goes to ``log``, or where this process's goes.

    ``own_group``: it leads a process group, which is ended as a whole and gets no Ctrl-C of this terminal. ``stdin``: a file of
    this process that it reads from.
    """
    output = None
    if log is not None:
        log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        return subprocess.Popen(  # noqa: S603
            list(command),
            env={**os.environ, **(environment or {})},
            stdin=stdin,
            stdout=output,
            stderr=output,
            start_new_session=own_group,
            preexec_fn=_end_with(os.getpid()) if sys.platform == "linux" else None,  # noqa: PLW1509
        )
    finally:
        if output is not None:
            os.close(output)


def stop(process: subprocess.Popen[bytes], grace_seconds: float) -> int:
    """Ask the process to end, and end it hard when it has not within ``grace_seconds``; its exit code."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(grace_seconds)
        except subprocess.TimeoutExpired:
            process.kill()
    return process.wait()


class Supervisor:
    """Keeps children alive until :meth:`stop`.

    A child that ends is started again after ``first_wait`` seconds, twice as long after each end that follows within a
    minute, ``longest_wait`` at most. Start it, and call :meth:`run` in the main thread.
    """

    def __init__(
        self,
        home: Path,
        children: Sequence[Child],
        *,
        first_wait: float = 0.5,
        longest_wait: float = 10.0,
        grace_seconds: float = 5.0,
        on_end: Callable[[str, int], None] = lambda _role, _code: None,
    ) -> None:
        self._home, self._children = home, tuple(children)
        self._first_wait, self._longest_wait, self._grace = first_wait, longest_wait, grace_seconds
        self._on_end = on_end
        self._is_stopped = False
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._due: dict[str, float] = {child.role: 0.0 for child in self._children}
        self._waits: dict[str, float] = {}
        self._started: dict[str, float] = {}

    def stop(self) -> None:
        """Ask :meth:`run` to stop the children and return; may be called from a thread or a signal handler.

        An event would not do: a handler that sets it while the thread that it interrupts is about to wait for it, waits for ever.
        """
        self._is_stopped = True

    def run(self) -> int:
        """Keep the children alive; the exit code of a child that must not be started again, or 0 when stopped."""
        try:
            while not self._is_stopped:
                code = self._look_after_all()
                if code is not None:
                    return code
                time.sleep(_POLL_SECONDS)
            return 0
        finally:
            self._end_all()

    def _look_after_all(self) -> int | None:
        for child in self._children:
            process = self._running.get(child.role)
            if process is None:
                if time.monotonic() >= self._due[child.role]:
                    self._try_to_start(child)
            elif process.poll() is not None and self._ended(child, process.returncode):
                return process.returncode
        return None

    def _try_to_start(self, child: Child) -> None:
        """A full disk, or a machine that is out of processes, passes: the other children are not ended for it."""
        try:
            self._start(child)
        except OSError as error:
            _log.error("%s cannot be started: %s", child.role, error.strerror)
            process = self._running.pop(child.role, None)
            if process is not None:
                stop(process, self._grace)
            self._put_off(child.role, again=True)

    def _start(self, child: Child) -> None:
        process = start(child.command, environment=child.environment, log=child.log)
        self._running[child.role] = process
        self._started[child.role] = time.monotonic()
        file = pid_file(self._home, child.role)
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_atomically(file, str(process.pid).encode())

    def _ended(self, child: Child, code: int) -> bool:
        """Whether the child's end is the supervisor's."""
        del self._running[child.role]
        pid_file(self._home, child.role).unlink(missing_ok=True)
        self._on_end(child.role, code)
        if code in child.final_codes:
            return True
        lived = time.monotonic() - self._started[child.role]
        self._put_off(child.role, again=lived <= 60)
        _log.warning(
            "%s ended with code %s; it is started again in %.1f s", child.role, code, self._waits[child.role]
        )
        return False

    def _put_off(self, role: str, *, again: bool) -> None:
        """Set when the child is started next; ``again``: it did not last."""
        wait = self._waits.get(role, self._first_wait / 2) * 2 if again else self._first_wait
        self._waits[role] = min(max(wait, self._first_wait), self._longest_wait)
        self._due[role] = time.monotonic() + self._waits[role]

    def _end_all(self) -> None:
        for process in self._running.values():
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        end = time.monotonic() + self._grace
        for role, process in self._running.items():
            stop(process, max(end - time.monotonic(), 0.05))
            pid_file(self._home, role).unlink(missing_ok=True)
        self._running.clear()


def _end_with(parent: int) -> Callable[[], None]:
    """What a child does before it becomes another program: ask the kernel to end it with its parent."""
    library = ctypes.CDLL(None, use_errno=True)

    def prepare() -> None:
        library.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)

    return prepare
