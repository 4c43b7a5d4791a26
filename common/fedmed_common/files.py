"""Writing so that a crash leaves the old content or the new, nothing between."""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
from collections.abc import Callable, Iterable
from pathlib import Path


def write_atomically(
    path: Path,
    content: bytes | Iterable[bytes | memoryview],
    *,
    mode: int = 0o666,
    before_rename: Callable[[], None] | None = None,
) -> None:
    """Temporary file, fsync, rename, fsync of the folder. Two processes or threads may write the same file; the later rename
    counts.

    ``content``: all of it, or piece by piece. ``mode``: the new file's permissions, from its first moment on, less the
    umask's. ``before_rename`` is called when the temporary file is whole: the moment that a fault test wants.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb") as stream:
            stream.writelines([content] if isinstance(content, bytes) else content)
            stream.flush()
            os.fsync(stream.fileno())
        if before_rename is not None:
            before_rename()
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def remove_leftovers(path: Path) -> None:
    """Delete what killed writers of ``path`` left beside it. Only for a file that one process writes at a time."""
    for leftover in path.parent.glob(f".{path.name}.*.tmp"):
        leftover.unlink(missing_ok=True)


def name_of(text: str) -> str:
    """A file's name for any text, as a run's: 32 hexadecimal digits."""
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def keep_newest(folder: Path, count: int, but: Path) -> None:
    """Delete the folders in ``folder`` that changed longest ago, down to ``count``, never ``but``."""
    oldest_first = sorted(folder.iterdir(), key=lambda entry: entry.stat().st_mtime_ns)
    for entry in oldest_first[:-count]:
        if entry != but:
            shutil.rmtree(entry, ignore_errors=True)


def sync_folder(folder: Path) -> None:
    """Make the folder's entries durable: what was created, renamed or deleted in it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
