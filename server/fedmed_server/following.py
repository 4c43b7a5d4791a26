"""A store that follows a run's ``history.jsonl`` from a distance: it can be away, and is caught up later.

A cursor, ``tracking.json`` in the run's folder, says how far the store is. It moves only after the store took a batch, so a store
must bear to be sent a batch twice.
"""

from __future__ import annotations

import fcntl
import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, ValidationError

from fedmed_common.errors import TrackingAway
from fedmed_common.files import write_atomically
from fedmed_server import history
from fedmed_server.history import RoundDone, RunEnded, RunStarted

CURSOR, _LOCK = "tracking.json", ".tracking.lock"
_RECORDS_PER_BATCH = 25
_LONGEST_REASON = 200


class Cursor(BaseModel):
    """How far one store is: records sent and the byte behind them.

    ``store``: digest of its address, which may hold a password. ``parent``, ``children`` (by site): the store's own run ids.
    ``artifacts``: digest of each file sent, by name.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    store: str
    parent: str = ""
    children: dict[str, str] = {}
    records: int = 0
    offset: int = 0
    artifacts: dict[str, str] = {}


class Store(Protocol):
    """Where a run is sent. Each method returns the cursor, with the run ids that it found or made; any exception is an outage."""

    address: str

    def open(self, cursor: Cursor) -> Cursor:
        """Connect anew; the cursor back, or an empty one where the store does not know the cursor's run."""

    def send(self, records: Sequence[RunStarted | RoundDone | RunEnded], cursor: Cursor) -> Cursor:
        """Take the records; those that it has already change nothing."""

    def upload(self, name: str, content: bytes, cursor: Cursor) -> Cursor:
        """Take one file, replacing the one of that name."""


class Follower:
    """One run's way into one store. Its methods raise nothing but TrackingAway."""

    def __init__(self, run: Path, store: Store, files: Callable[[], dict[str, bytes]]) -> None:
        """``files`` draws what goes beside the records, by name; it is called by :meth:`send_files`."""
        self.run, self.store, self._files = run, store, files
        self._cursor: Cursor | None = None
        self._size = 0

    def catch_up(self) -> int:
        """Send the records that the store does not have; how many there were."""
        file = self.run / history.FILE
        size = file.stat().st_size if file.exists() else 0
        if size == self._size:
            return 0
        sent = 0
        with self._connected() as start:
            cursor = start
            while True:
                records, offset = history.read_from(file, cursor.offset, _RECORDS_PER_BATCH)
                if not records:
                    break
                cursor = self.store.send(records, cursor)
                sent += len(records)
                cursor = self._save(cursor, offset=offset, records=cursor.records + len(records))
            self._size = size
        return sent

    def send_files(self) -> None:
        """Send the files that changed since they were last sent; nothing where the run has no record yet."""
        if not (self.run / history.FILE).exists():
            return
        with self._connected() as start:
            cursor = start
            for name, content in self._files().items():
                if cursor.artifacts.get(name) != digest(content):
                    cursor = self.store.upload(name, content, cursor)
                    cursor = self._save(cursor, artifacts=cursor.artifacts | {name: digest(content)})

    @contextmanager
    def _connected(self) -> Iterator[Cursor]:
        """Alone at this run, with an open store and the cursor as last saved."""
        try:
            with (self.run / _LOCK).open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if self._cursor is None:
                    self._cursor = self.store.open(self._load())
                yield self._cursor
        except BlockingIOError:
            self._cursor = None
            raise away("another process is sending this run", self.run) from None
        except ValidationError:
            raise away(f"{history.FILE} has a line that is not of this version", self.run) from None
        except Exception as error:
            self._cursor = None
            raise away(_reason(error, self.store.address), self.run) from error

    def _load(self) -> Cursor:
        new = Cursor(store=digest(self.store.address.encode()))
        try:
            saved = Cursor.model_validate_json((self.run / CURSOR).read_bytes())
        except (FileNotFoundError, ValidationError):
            return new
        return saved if saved.store == new.store else new

    def _save(self, cursor: Cursor, **changes: object) -> Cursor:
        self._cursor = cursor.model_copy(update=changes)
        write_atomically(self.run / CURSOR, self._cursor.model_dump_json(indent=1).encode() + b"\n")
        return self._cursor


def digest(content: bytes) -> str:
    """Enough of a SHA-256 to tell one content from another."""
    return hashlib.sha256(content).hexdigest()[:32]


def away(reason: str, run: Path) -> TrackingAway:
    """The one error of this module, with what to do about it."""
    return TrackingAway(f"tracking is away ({reason}); catch up with `fedmed track {run}`")


def _reason(error: Exception, address: str) -> str:
    """The first line of the error, without the address's password."""
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    secret = urlsplit(address).password if "://" in address else None
    if secret:
        line = line.replace(secret, "***")
    return line if len(line) <= _LONGEST_REASON else line[:_LONGEST_REASON] + "..."
