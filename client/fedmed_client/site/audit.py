"""``audit.log``: what was asked of this site and what it did, one line of JSON an event, each bound to the one before.

Every line holds the SHA-256 of the line before it, and ``audit.head`` the number of lines and the SHA-256 of the last, so
that a line that was changed, removed or put in is found, and so is an end that was cut off. Whoever can write both files can
also write both anew: keep a copy of the head elsewhere if that matters.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, TypeAlias

from fedmed_common.errors import FedmedError
from fedmed_common.files import write_atomically

LOG, HEAD = "audit.log", "audit.head"
Event: TypeAlias = Literal[
    "started",
    "stopped",
    "connected",
    "received",
    "approved",
    "rejected",
    "refused",
    "reserved",
    "failed",
    "sealed",
    "cancelled",
    "worker-lost",
    "sent",
    "withdrawn",
]
_LONGEST_VALUE = 200
_FIRST = hashlib.sha256(b"").hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """Where the log ends: its lines, its bytes, and the SHA-256 of its last line."""

    lines: int = 0
    size: int = 0
    sha256: str = _FIRST


class AuditLog:
    """The audit log of a site's folder. Any of the site's processes may write; each event is on disk when it is told."""

    def __init__(self, home: Path) -> None:
        self._log, self._head = home / LOG, home / HEAD

    def append(self, event: Event, **fields: str | int) -> None:
        """Add an event. ``fields``: words and numbers of orders (``run``, ``round``, ``rule``), nothing of patients.

        Raises:
            OSError: it cannot be written; then what it tells of must not happen.
        """
        details = {
            name: value if isinstance(value, int) else value[:_LONGEST_VALUE]
            for name, value in fields.items()
        }
        with self._alone():
            head = self._recovered()
            moment = datetime.now(UTC).isoformat(timespec="milliseconds")
            line = json.dumps({"time": moment, "event": event, **details, "previous": head.sha256})
            content = line.encode() + b"\n"
            with open(self._log, "ab", opener=_private) as log:
                log.write(content)
                log.flush()
                os.fsync(log.fileno())
            self._keep(Head(lines=head.lines + 1, size=head.size + len(content), sha256=_digest(content)))

    def verify(self) -> Head:
        """Where the log ends, if it is whole.

        Raises:
            FedmedError: names the first line that is not what was written, or says that the end is missing.
        """
        with self._alone():
            head = self._recovered()
            lines = self._log.read_bytes().splitlines(keepends=True) if self._log.exists() else []
        previous = _FIRST
        for number, line in enumerate(lines, start=1):
            if _previous(line) != previous or number > head.lines:
                raise FedmedError(f"{LOG} was changed: {_where(number, line, head)}")
            previous = _digest(line)
        if len(lines) < head.lines:
            raise FedmedError(f"the end of {LOG} is missing: {len(lines)} of {head.lines} lines are there")
        if previous != head.sha256:
            raise FedmedError(f"{LOG} was changed: line {len(lines)} is not as it was written")
        return head

    @contextmanager
    def _alone(self) -> Iterator[None]:
        descriptor = os.open(self._log.with_name(f".{LOG}.lock"), os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _recovered(self) -> Head:
        """The head, after what a killed writer left: a line without its head is taken, half a line is removed."""
        head = Head()
        if self._head.exists():
            head = Head(**json.loads(self._head.read_bytes()))
        size = self._log.stat().st_size if self._log.exists() else 0
        if size <= head.size:
            return head
        with self._log.open("r+b") as log:
            log.seek(head.size)
            rest = log.read()
            if b"\n" not in rest:
                log.truncate(head.size)
                return head
            if rest.count(b"\n") > 1 or _previous(rest) != head.sha256:
                return head
        head = Head(lines=head.lines + 1, size=size, sha256=_digest(rest))
        self._keep(head)
        return head

    def _keep(self, head: Head) -> None:
        write_atomically(self._head, json.dumps(asdict(head)).encode())


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _digest(line: bytes) -> str:
    return hashlib.sha256(line.rstrip(b"\n")).hexdigest()


def _previous(line: bytes) -> object:
    try:
        document = json.loads(line)
    except ValueError:
        return None
    return document.get("previous") if isinstance(document, dict) else None


def _where(number: int, line: bytes, head: Head) -> str:
    """What is wrong before or at a line that does not follow from the one before it."""
    if _previous(line) is None:
        return f"line {number} is not as it was written"
    if number > head.lines:
        return f"line {number} was put in"
    if number == 1:
        return "line 1 is not the first that was written"
    return f"line {number - 1} is not as it was written, or a line after it was removed or put in"
