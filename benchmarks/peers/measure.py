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
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One command. ``cpu_seconds``: of all its processes, at least. ``peak_mb``: the most that they held together, each shared
    page counted once; 0 where the system does not tell. ``others``: the share of the machine's cores that other programs had
    meanwhile. ``code``: how it ended; None where it took longer than it may. ``log``: all that it printed.
    """

    seconds: float
    cpu_seconds: float
    peak_mb: float
    others: float
    code: int | None
    log: str


class Watch:
    """What this process's descendants hold and do while the block runs, looked at twice a second.

    ``peak_mb``: the most memory that they held together. ``cpu_seconds``: of all that were seen; the system counts those of a
    process that somebody else should have waited for nowhere.
    """

    def __init__(self) -> None:
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._cpu: dict[int, float] = {}
        self.peak_mb = 0.0

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    @property
    def cpu_seconds(self) -> float:
        """Of all processes, until each was seen last."""
        return sum(self._cpu.values())

    def _watch(self) -> None:
        while not self._over.wait(_EVERY_SECONDS):
            pids = descendants(os.getpid())
            self.peak_mb = max(self.peak_mb, sum(map(held_mb, pids)))
            self._cpu |= {pid: seconds for pid in pids if (seconds := cpu_seconds(pid))}


def adopt() -> None:
    """Become the parent of processes whose own parent ends: daemons are counted, and ended, as well."""
    if _PROC.exists():
        ctypes.CDLL(None).prctl(_SUBREAPER, 1, 0, 0, 0)


def measured(
    command: Sequence[str], environment: Mapping[str, str], log: Path, limit_seconds: float
) -> Measured:
    """Run it; whatever it leaves running is ended."""
    before, worked, busy = time.perf_counter(), _worked_seconds(), busy_seconds()
    with log.open("wb") as file, Watch() as watch:
        process = subprocess.Popen(
            command, env={**os.environ, **environment}, stdin=subprocess.DEVNULL, stdout=file, stderr=file
        )
        try:
            code = process.wait(limit_seconds)
        except subprocess.TimeoutExpired:
            code = None
        seconds = time.perf_counter() - before
    end_descendants()
    cpu = max(watch.cpu_seconds, _worked_seconds() - worked)
    return Measured(
        seconds=seconds,
        cpu_seconds=cpu,
        peak_mb=watch.peak_mb,
        others=max(0.0, busy_seconds() - busy - cpu) / (seconds * (os.cpu_count() or 1)),
        code=code,
        log=log.read_text(errors="replace"),
    )


def busy_seconds() -> float:
    """What all cores of this machine have worked since it started, for whomever; 0 where the system does not tell."""
    try:
        user, nice, system, _idle, _wait, *more = (_PROC / "stat").read_text().splitlines()[0].split()[1:]
    except OSError:
        return 0.0
    return sum(map(int, (user, nice, system, *more[:3]))) / _TICKS


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


def cpu_seconds(pid: int) -> float:
    """What a process has worked so far, in all its threads; 0 where it is gone."""
    try:
        fields = (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / _TICKS


def held_mb(pid: int) -> float:
    """A process's proportional set size: its own pages, and its share of those that it has with others."""
    try:
        for line in (_PROC / str(pid) / "smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) / 1024
    except OSError:
        pass
    return 0.0
