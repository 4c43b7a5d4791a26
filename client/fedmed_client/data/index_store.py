"""What a scan remembers of the files it has opened, so that the next one opens only those that changed.

One SQLite file, readable by its owner only: it holds patient identifiers. A row counts while the file's size and
modification time stay as they were, and the headers are read in the same way as when it was written.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from types import TracebackType

from pydicom import __version__ as pydicom_version

from fedmed_client.data.headers import Header, Refused, to_json
from fedmed_common.errors import ConfigError

_READING = f"3 pydicom {pydicom_version}"
_SCHEMA = """
CREATE TABLE IF NOT EXISTS reading (version TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS files (
    path BLOB PRIMARY KEY, size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL, found TEXT NOT NULL
) WITHOUT ROWID;
"""

Stamp = tuple[int, int]
"""Size in bytes and modification time in nanoseconds."""


def default_index_file(folder: Path) -> Path:
    """``$XDG_CACHE_HOME/fedmed/index/<hash of the folder's path>.db``; the folder itself may be read-only."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    name = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:16]
    return cache / "fedmed" / "index" / f"{name}.db"


class IndexStore:
    """A context manager over the index file; ``None`` keeps everything in memory.

    Raises ConfigError when the file is not an index of ours or cannot be written.
    """

    def __init__(self, file: Path | None) -> None:
        self._file = file
        try:
            self._connection = _open(file)
        except (sqlite3.Error, OSError) as error:
            fix = "name another file, or remove this one if it is a broken index"
            raise ConfigError(f"cannot be used as index: {error}", file=file, fix=fix) from error

    def __enter__(self) -> IndexStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.close()

    def recall(self, folder: Path) -> dict[bytes, tuple[Stamp, str]]:
        """What is known of the files under ``folder``: path -> (stamp, header as JSON)."""
        start = os.path.join(os.fsencode(folder), b"")  # noqa: PTH118
        rows = self._connection.execute(
            "SELECT path, size, mtime_ns, found FROM files WHERE substr(path, 1, ?) = ?", (len(start), start)
        )
        return {path: ((size, mtime_ns), found) for path, size, mtime_ns, found in rows}

    def remember(self, batch: Iterable[tuple[Path, Stamp, Header | Refused]]) -> None:
        """Write a batch in one transaction: it is there as a whole after a crash, or not at all."""
        rows = [(os.fsencode(path), *stamp, to_json(found)) for path, stamp, found in batch]
        with self._connection as connection:
            connection.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?)", rows)

    def forget(self, paths: Iterable[bytes]) -> None:
        """Drop the rows of files that are gone."""
        with self._connection as connection:
            connection.executemany("DELETE FROM files WHERE path = ?", [(path,) for path in paths])


def _open(file: Path | None) -> sqlite3.Connection:
    if file is not None:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(file, os.O_CREAT | os.O_RDWR, 0o600))
    connection = sqlite3.connect(file or ":memory:", timeout=60.0)
    try:
        connection.executescript(_SCHEMA)
        with closing(connection.execute("SELECT version FROM reading")) as rows:
            version = rows.fetchone()
        if version != (_READING,):
            with connection:
                connection.execute("DELETE FROM files")
                connection.execute("DELETE FROM reading")
                connection.execute("INSERT INTO reading VALUES (?)", (_READING,))
    except sqlite3.Error:
        connection.close()
        raise
    return connection
