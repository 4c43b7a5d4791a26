"""A folder that instances come into, from a search or a push: each whole or not at all, and none lost by a crash."""

from __future__ import annotations

import io
import json
import os
import shutil
import threading
import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path

from pydicom import dcmread

from fedmed_client.deidentify.folder import deidentify_file
from fedmed_client.deidentify.secret import SiteSecret
from fedmed_client.deidentify.table import Options
from fedmed_client.pacs.query import ArchiveError, FoundSeries, is_uid
from fedmed_common.errors import DataError
from fedmed_common.files import write_atomically

JOURNAL = "fetched.jsonl"
_GB = 1e9


@dataclass(frozen=True, slots=True)
class Deidentifying:
    """That what comes in is de-identified before it is written."""

    secret: SiteSecret
    options: Options


@dataclass
class Incoming:
    """The folder. ``least_free_gb``: space that stays free on its disk. ``per_second``: instances at most; 0: any number.

    ``refused``: why instances were not kept, by code. Threads may share one."""

    folder: Path
    least_free_gb: float = 2.0
    per_second: float = 0.0
    deidentifying: Deidentifying | None = None
    kept: int = 0
    refused: dict[str, int] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _next: float = 0.0

    def keep(self, content: bytes) -> Path | None:
        """Write an instance: study / series / instance, or pseudonym / series / instance. None: it was refused, and counted.

        Raises:
            ArchiveError: the disk is full.
        """
        self._wait()
        free = shutil.disk_usage(self.folder).free
        if free - len(content) < self.least_free_gb * _GB:
            raise ArchiveError(
                f"{self.folder}: {free / _GB:.1f} GB are free, of which {self.least_free_gb:g} stay free\n"
                "  fix: make space, or lower limits.least_free_gb"
            )
        try:
            name, written = self._named(content)
        except DataError as error:
            with self._lock:
                self.refused[error.code] = self.refused.get(error.code, 0) + 1
            return None
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, written)
        with self._lock:
            self.kept += 1
        return path

    def is_fetched(self, series: FoundSeries) -> bool:
        """Whether all of a series has come before, as many instances as the archive has now."""
        return (series.series, series.images) in self._journal()

    def note_fetched(self, series: FoundSeries) -> None:
        """Remember that all of it has come, durably."""
        line = json.dumps({"series": series.series, "images": series.images}) + "\n"
        with (self.folder / JOURNAL).open("a", encoding="utf-8") as stream:
            stream.write(line)
            stream.flush()
            os.fsync(stream.fileno())

    def _journal(self) -> set[tuple[str, int | None]]:
        found: set[tuple[str, int | None]] = set()
        journal = self.folder / JOURNAL
        for line in journal.read_text(encoding="utf-8").splitlines() if journal.exists() else ():
            try:
                entry = json.loads(line)
                found.add((entry["series"], entry["images"]))
            except (ValueError, KeyError):
                continue
        return found

    def _named(self, content: bytes) -> tuple[str, bytes]:
        if self.deidentifying is not None:
            name, written, _ = deidentify_file(
                io.BytesIO(content), self.deidentifying.secret, self.deidentifying.options
            )
            return name, written
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                header = dcmread(io.BytesIO(content), stop_before_pixels=True)
                uids = [
                    str(header.get(keyword) or "")
                    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
                ]
            except Exception as error:
                raise DataError(f"not readable ({type(error).__name__})") from error
        if not all(is_uid(uid) for uid in uids):
            raise DataError("its UIDs are missing or malformed")
        return "/".join(uids) + ".dcm", content

    def _wait(self) -> None:
        if not self.per_second:
            return
        with self._lock:
            now = time.monotonic()
            wait, self._next = max(0.0, self._next - now), max(now, self._next) + 1 / self.per_second
        time.sleep(wait)
