"""Named points at which a fault test ends a process. Nothing happens unless ``FEDMED_FAILPOINTS`` names a plan.

A plan is a JSON file::

    {"faults": [{"point": "before-seal", "target": "/path/run/worker.pid", "signal": "SIGKILL",
                 "round": 2, "site": "alpha", "id": "f1"}], "fired": "/path/of/an/existing/folder"}

``round`` and ``site`` narrow a fault down; left out, any fits. ``target`` is the pid file of the process to end, which may
be another than the one that reaches the point; left out, it is that one. A fault happens once: its marker is made in ``fired``
before the signal.
"""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

VARIABLE = "FEDMED_FAILPOINTS"
POINTS = (
    "before-dispatch",
    "training",
    "before-seal",
    "after-seal",
    "after-send",
    "aggregating",
    "writing-checkpoint",
)
_GONE_SECONDS = 10.0


def reach(point: str, *, round: int = 0, site: str = "") -> None:
    """Say that this process is at ``point``; returns once a fault planned for it has happened to another process."""
    plan = os.environ.get(VARIABLE)
    if plan:
        _carry_out(Path(plan), point, round, site)


def _carry_out(plan: Path, point: str, round: int, site: str) -> None:
    document: dict[str, Any] = json.loads(plan.read_text())
    for fault in document["faults"]:
        wanted = (fault["point"], fault.get("round", round), fault.get("site", site))
        if wanted == (point, round, site) and _first(Path(document["fired"]) / str(fault["id"])):
            target = int(Path(fault["target"]).read_text()) if "target" in fault else os.getpid()
            _end(target, signal.Signals[fault["signal"]])


def _first(marker: Path) -> bool:
    try:
        marker.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def _end(pid: int, number: signal.Signals) -> None:
    os.kill(pid, number)
    deadline = time.monotonic() + _GONE_SECONDS
    while pid != os.getpid() and _alive(pid) and time.monotonic() < deadline:
        time.sleep(0.01)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
