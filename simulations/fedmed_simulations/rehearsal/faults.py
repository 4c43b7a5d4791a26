"""One fault in one run: a process of a consortium is ended at a named point, and what becomes of the run is looked at."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

from fedmed_common.errors import FedmedError
from fedmed_common.failpoints import POINTS, VARIABLE
from fedmed_common.files import write_atomically
from fedmed_server.history import RoundDone, RunEnded
from fedmed_server.state import model_file
from fedmed_simulations.rehearsal.consortium import Consortium
from fedmed_simulations.rehearsal.equality import difference

Role = Literal["superlink", "serverapp", "link", "worker"]
Signal = Literal["SIGKILL", "SIGTERM", "SIGSTOP"]
ROLES: tuple[Role, ...] = ("superlink", "serverapp", "link", "worker")
SIGNALS: tuple[Signal, ...] = ("SIGKILL", "SIGTERM")
AT_A_SITE = frozenset({"training", "before-seal", "after-seal", "after-send"})
_POLL_SECONDS = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """End the process that has ``role`` with ``signal``, or hold it (SIGSTOP), when ``point`` is reached in ``round``.

    ``site``: whose process it is, for ``link`` and ``worker``; and at whose point, for the points at a site.
    """

    role: Role
    point: str
    signal: Signal
    round: int
    site: str

    @property
    def name(self) -> str:
        """Tells faults of one plan apart."""
        return f"{self.role}-{self.point}-{self.signal}-{self.round}-{self.site}"

    def home(self, consortium: Consortium) -> Path:
        """Where the process to end has its pid file."""
        return consortium.site(self.site) if self.role in {"link", "worker"} else consortium.server


EVERY_FAULT = tuple((role, point, signal) for role in ROLES for point in POINTS for signal in SIGNALS)
"""All ways to end a process: 4 roles, 7 points, 2 signals."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of a run with a fault.

    ``difference``: from the weights of the run without the fault, '' for none. ``down_seconds``: from the signal until the
    process was there again; ``recovery_seconds``: from then until the faulted round was done (0: it was done before).
    """

    fault: Fault
    run: str
    ended: RunEnded
    difference: str
    down_seconds: float
    recovery_seconds: float

    @property
    def problem(self) -> str:
        """Why this is not an outcome that a fault may have; empty where it is."""
        if self.ended.status == "completed":
            return f"completed, but {self.difference}" if self.difference else ""
        if not self.ended.status.startswith("degraded"):
            return self.ended.status
        named = self.fault.site in self.ended.status and f"round {self.fault.round}" in self.ended.status
        return "" if named else f"{self.ended.status} (names no site and round)"


class Faults:
    """The plan that the processes of a consortium read at every failpoint; empty at first.

    Start the consortium with :attr:`environment` in its environment.
    """

    def __init__(self, folder: Path) -> None:
        self.file, self._fired = folder / "faults.json", folder / "fired"
        self._fired.mkdir(parents=True, exist_ok=True)
        self._write([])

    @property
    def environment(self) -> dict[str, str]:
        """What makes a process read the plan."""
        return {VARIABLE: str(self.file)}

    def plan(self, consortium: Consortium, faults: Sequence[Fault], run: str = "") -> None:
        """Plan these faults, and no others; ``run`` makes faults of an earlier plan happen anew."""
        self._write(
            [
                {
                    "id": f"{fault.name}{run}",
                    "point": fault.point,
                    "signal": fault.signal,
                    "round": fault.round,
                    "target": str(fault.home(consortium) / "run" / f"{fault.role}.pid"),
                    **({"site": fault.site} if fault.point in AT_A_SITE else {}),
                }
                for fault in faults
            ]
        )

    def fired(self, fault: Fault, run: str = "") -> float | None:
        """When the fault happened, in seconds since 1970; None where it has not."""
        try:
            return (self._fired / f"{fault.name}{run}").stat().st_mtime
        except FileNotFoundError:
            return None

    def _write(self, faults: list[dict[str, object]]) -> None:
        write_atomically(self.file, json.dumps({"faults": faults, "fired": str(self._fired)}).encode())


def run_with_fault(
    consortium: Consortium,
    faults: Faults,
    fault: Fault,
    experiment: Path,
    whole: Path,
    seconds: float = 240.0,
) -> Outcome:
    """Launch a run, let the fault happen, and wait for the end. ``whole``: the folder of a run without faults.

    Raises:
        FedmedError: the fault did not happen, the run did not end, or the process did not come back.
    """
    faults.plan(consortium, [fault])
    run = consortium.launch(experiment)
    watch = _Watch(consortium, fault)
    end = time.monotonic() + seconds
    while consortium.ended(run) is None or (faults.fired(fault) and watch.back is None):
        watch.look(faults.fired(fault))
        if time.monotonic() > end:
            raise FedmedError(
                f"{fault.name}: the run {run} has not ended, or {fault.role} has not come back, in {seconds:g} s"
            )
        time.sleep(_POLL_SECONDS)
    faults.plan(consortium, [])
    fired, ended = faults.fired(fault), consortium.ended(run)
    if fired is None or ended is None or watch.back is None:
        raise FedmedError(f"{fault.name}: it did not happen in run {run}")
    done = [record for record in consortium.records(run) if isinstance(record, RoundDone)]
    moments = [
        datetime.fromisoformat(record.time).timestamp() for record in done if record.round == fault.round
    ]
    return Outcome(
        fault=fault,
        run=run,
        ended=ended,
        difference=difference(model_file(consortium.run_folder(run), "last"), model_file(whole, "last")),
        down_seconds=watch.back - fired,
        recovery_seconds=max(0.0, (moments[-1] if moments else time.time()) - watch.back),
    )


class _Watch:
    """Notices when the process that a fault ended is there again."""

    def __init__(self, consortium: Consortium, fault: Fault) -> None:
        self._file = fault.home(consortium) / "run" / f"{fault.role}.pid"
        self._before: str | None = None
        self.back: float | None = None

    def look(self, fired: float | None) -> None:
        """One look; ``back`` is set once another process than before the fault has the role."""
        try:
            now, written = self._file.read_text(), self._file.stat().st_mtime
        except FileNotFoundError:
            return
        if fired is None:
            self._before = now
        elif self.back is None and now != self._before and written > fired and _alive(now):
            self.back = written


def _alive(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, ValueError):
        return False
    return True
