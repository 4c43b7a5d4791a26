"""Worker processes on this machine. Imports nothing heavy: a worker runs it before anything else."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import threading

_FILES_ON_MACOS = 10_240
"""What macOS permits where it says 'unlimited'."""


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def prepare_worker() -> None:
    """In a worker: leave Ctrl-C to the parent, and end as soon as the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def allow_many_open_files() -> None:
    """Raise this process's limit as far as the system permits: every mapped array holds a file open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _FILES_ON_MACOS if hard == resource.RLIM_INFINITY else hard
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
