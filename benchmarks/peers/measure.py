"""A command and all processes that it starts: seconds, memory, what it said."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_SUBREAPER = 36
_EVERY_SECONDS = 0.5
_PROC = Path("/proc")


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One command. ``cpu_seconds``: of all its processes. ``peak_mb``: the most that they held together, each shared page counted
    once; 0 where the system does not tell. ``code``: how it ended; None where it took longer than it may. ``log``: all that it
    printed."""

    seconds: float
    cpu_seconds: float
    peak_mb: float
    code: int | None
    log: str


class Memory:
    """The most memory that this process's descendants hold together while the block runs, looked at twice a second."""

    def __init__(self) -> None:
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.peak_mb = 0.0

    def __enter__(self) -> Memory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(_EVERY_SECONDS):
            self.peak_mb = max(self.peak_mb, sum(held_mb(pid) for pid in descendants(os.getpid())))


def adopt() -> None:
    """Become the parent of processes whose own parent ends: daemons are counted, and ended, as well."""
    if _PROC.exists():
        ctypes.CDLL(None).prctl(_SUBREAPER, 1, 0, 0, 0)


def measured(
    command: Sequence[str], environment: Mapping[str, str], log: Path, limit_seconds: float
) -> Measured:
    """Run it; whatever it leaves running is ended."""
    before, worked = time.perf_counter(), _worked_seconds()
    with log.open("wb") as file, Memory() as memory:
        process = subprocess.Popen(
            command, env={**os.environ, **environment}, stdin=subprocess.DEVNULL, stdout=file, stderr=file
        )
        try:
            code = process.wait(limit_seconds)
        except subprocess.TimeoutExpired:
            code = None
        seconds = time.perf_counter() - before
    end_descendants()
    return Measured(
        seconds=seconds,
        cpu_seconds=_worked_seconds() - worked,
        peak_mb=memory.peak_mb,
        code=code,
        log=log.read_text(errors="replace"),
    )


def _worked_seconds() -> float:
    """Of all children that have ended, and of theirs."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def end_descendants() -> None:
    """End what is left, until nothing is."""
    while left := descendants(os.getpid()):
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        try:
            while os.waitpid(-1, 0)[0]:
                pass
        except ChildProcessError:
            continue


def descendants(pid: int) -> list[int]:
    """Children, their children, and so on; none where the system does not tell."""
    children: dict[int, list[int]] = {}
    for entry in _PROC.glob("[0-9]*/stat"):
        try:
            parent = int(entry.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        children.setdefault(parent, []).append(int(entry.parent.name))
    found, todo = [], [pid]
    while todo:
        of = children.get(todo.pop(), [])
        found += of
        todo += of
    return found


def held_mb(pid: int) -> float:
    """A process's proportional set size: its own pages, and its share of those that it has with others."""
    try:
        for line in (_PROC / str(pid) / "smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) / 1024
    except OSError:
        pass
    return 0.0
