"""Set-up of worker processes. Imports nothing heavy: it must run before the numeric libraries read their settings."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading


def prepare() -> None:
    """One thread per process, Ctrl-C left to the parent, and an end as soon as the parent is gone."""
    for library in ("OMP", "OPENBLAS", "MKL"):
        os.environ[f"{library}_NUM_THREADS"] = "1"
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
