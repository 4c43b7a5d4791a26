"""Worker processes on this machine. Imports nothing heavy: a worker runs it before anything else."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import resource
import signal
import threading

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_NEVER, _LARGEST_KEPT = 2**31 - 1, 2**25
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


def keep_freed_memory() -> None:
    """Have this process keep blocks of up to 32 MB that it frees, for the next ones, where its C library is glibc.

    Training frees and takes the same sizes in every step. Given back to the system meanwhile, their pages have to be made anew,
    which takes a fifth of a small network's step on a CPU. See mallopt(3).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_TRIM_THRESHOLD, _NEVER)
        mallopt(_MMAP_THRESHOLD, _LARGEST_KEPT)
