"""A folder that instances come into, from a search or a push: each whole or not at all, and none lost by a crash."""

from __future__ import annotations

import io
import json
import os
import shutil
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from pydicom import dcmread

from fedmed_client.deidentify.burned_in import require_reader
from fedmed_client.deidentify.folder import claim, deidentify_file, settings_of
from fedmed_client.deidentify.header import LABEL_CLASSES
from fedmed_client.deidentify.secret import SiteSecret
from fedmed_client.deidentify.table import Options
from fedmed_client.pacs.query import ArchiveError, FoundSeries, is_uid
from fedmed_common.errors import DataError
from fedmed_common.files import sync_folder, write_atomically

JOURNAL = "fetched.jsonl"
_UIDS = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
_GB = 1e9


@dataclass(frozen=True, slots=True)
class Deidentifying:
    """That what comes in is de-identified before it is written."""

    secret: SiteSecret
    options: Options


class Refused(DataError):
    """An instance that is not kept."""

    code = "refused"


@dataclass
class Incoming:
    """The folder. ``least_free_gb``: space that stays free on its disk. ``per_second``: instances at most; 0: any number.

    ``on_kept``: told the subfolder of each study, or pseudonym, of which an image was written. ``refused``: by code, how many
    were not kept, and the first one's reason. Threads may share one."""

    folder: Path
    least_free_gb: float = 2.0
    per_second: float = 0.0
    deidentifying: Deidentifying | None = None
    on_kept: Callable[[str], None] = lambda _study: None
    kept: int = 0
    refused: dict[str, tuple[int, str]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _next: float = 0.0

    def open(self) -> None:
        """Make the folder, or see that what is in it was kept in the same way.

        Raises:
            ConfigError: it was filled otherwise, or text in pixels cannot be looked for here.
        """
        made_with: dict[str, object] = {"originals": True}
        if self.deidentifying is not None:
            require_reader()
            made_with = settings_of(self.deidentifying.options, self.deidentifying.secret, look_for_text=True)
        claim(self.folder, made_with)

    def keep(self, content: bytes, of: str | None = None) -> str:
        """Write an instance: study / series / instance, or pseudonym / series / instance. ``of``: the series that it must be of.
        Its SOP instance UID, as it came.

        Raises:
            DataError: it is not kept, and counted.
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
            uids, is_label = _uids(content)
            if of is not None and uids[1] != of:
                raise Refused("the archive sent an image of another series")
            name, written = "/".join(uids) + ".dcm", content
            if self.deidentifying is not None:
                secret, options = self.deidentifying.secret, self.deidentifying.options
                name, written, _ = deidentify_file(io.BytesIO(content), secret, options)
        except DataError as error:
            with self._lock:
                count, reason = self.refused.get(error.code, (0, str(error)))
                self.refused[error.code] = count + 1, reason
            raise
        path = self.folder / name
        if not path.parent.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            for parent in (path.parent.parent, self.folder):
                sync_folder(parent)
        write_atomically(path, written)
        with self._lock:
            self.kept += 1
        if not is_label:
            self.on_kept(name.partition("/")[0])
        return uids[2]

    def is_fetched(self, series: FoundSeries) -> bool:
        """Whether all of a series has come before, as many instances as the archive says that it has."""
        return series.images is not None and (self._noted(series), series.images) in self._journal()

    def note_fetched(self, series: FoundSeries) -> None:
        """Remember that all of it has come, durably."""
        line = json.dumps({"series": self._noted(series), "images": series.images}) + "\n"
        with (self.folder / JOURNAL).open("a", encoding="utf-8") as stream:
            stream.write(line)
            stream.flush()
            os.fsync(stream.fileno())
        sync_folder(self.folder)

    def _noted(self, series: FoundSeries) -> str:
        """How the journal names a series: as the files do, for it may travel with them."""
        return series.series if self.deidentifying is None else self.deidentifying.secret.uid(series.series)

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

    def _wait(self) -> None:
        if not self.per_second:
            return
        with self._lock:
            now = time.monotonic()
            wait, self._next = max(0.0, self._next - now), max(now, self._next) + 1 / self.per_second
        time.sleep(wait)


def _uids(content: bytes) -> tuple[tuple[str, str, str], bool]:
    """Of study, series and instance; and whether it is a segmentation or a structure set.

    Raises:
        Refused: they cannot be read, or are no UIDs.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            header = dcmread(
                io.BytesIO(content), stop_before_pixels=True, specific_tags=[*_UIDS, "SOPClassUID"]
            )
            is_label = str(header.get("SOPClassUID") or "") in LABEL_CLASSES
            study, series, instance = (str(header.get(keyword) or "") for keyword in _UIDS)
        except Exception as error:
            raise Refused(f"what came is no DICOM ({type(error).__name__})") from error
    if not all(is_uid(uid) for uid in (study, series, instance)):
        raise Refused("its UIDs are missing or malformed")
    return (study, series, instance), is_label
