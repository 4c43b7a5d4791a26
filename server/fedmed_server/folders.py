"""A run's folder: its name, made whole or not at all, and held by one process at a time."""

from __future__ import annotations

import fcntl
import os
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from fedmed_common.config import Experiment
from fedmed_common.errors import CheckpointError
from fedmed_common.files import sync_folder, write_atomically

LOCK = ".lock"
WEIGHTS = "weights.json"
"""What became of the file that the run's weights started from."""
_AGAIN_SECONDS = 0.1


def new_run_id(experiment: Experiment) -> str:
    """A name that sorts by time and tells runs apart."""
    return f"{datetime.now():%Y%m%d-%H%M%S}-{experiment.name}-{secrets.token_hex(2)}"


def create(folder: Path, files: Mapping[str, bytes]) -> None:
    """Make the folder with its first files: whole, or not at all."""
    unfinished = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    unfinished.mkdir(parents=True)
    for name, content in files.items():
        write_atomically(unfinished / name, content)
    unfinished.rename(folder)
    sync_folder(folder.parent)


@contextmanager
def locked(folder: Path, patience_seconds: float = 0.0) -> Iterator[None]:
    """Hold the run for this process; the lock goes with the process, however it ends.

    Raises:
        CheckpointError: another process is running it, and still is after ``patience_seconds``.
    """
    end = time.monotonic() + patience_seconds
    with (folder / LOCK).open("w") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= end:
                    raise CheckpointError(f"{folder}: another process is running this run") from None
                time.sleep(_AGAIN_SECONDS)
        yield


def is_locked(folder: Path) -> bool:
    """Whether a process holds the run at this moment."""
    try:
        with (folder / LOCK).open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False
