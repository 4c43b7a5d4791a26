"""Prediction for every study that arrives: once nothing more of it has come for a while, a released model looks at it."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fedmed_client.predict.page import write_page
from fedmed_client.predict.released import Released
from fedmed_client.predict.study import Outcome, Wish, predict_study
from fedmed_common.files import write_atomically
from fedmed_common.site_config import SiteData

LOOKED = "looked.json"
_UNFINISHED = ".unfinished"
_AGAIN_SECONDS = 60.0


@dataclass
class Arriving:
    """Studies in ``folder``, a subfolder each, and what was found in them: in ``results``, under the same names.

    ``store``: is given what was written of a study; where it fails, it is given it again, a minute later or by the next process.
    A study of which more comes later is looked at again as a whole, also where the process ended meanwhile; one that cannot be
    looked at is not tried again before."""

    folder: Path
    results: Path
    models: Sequence[Released]
    wanted: SiteData | None
    wish: Wish
    quiet_seconds: float
    store: Callable[[Sequence[Path]], None] | None = None
    _due: dict[str, float] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def open(self) -> None:
        """Take up the studies that lie there and were not looked at as they are now, or whose results were not stored."""
        shutil.rmtree(self.results / _UNFINISHED, ignore_errors=True)
        for study in sorted(self.folder.iterdir()) if self.folder.is_dir() else ():
            if study.is_dir() and not study.name.startswith(".") and not self._is_done(study.name):
                self.note(study.name)

    def note(self, study: str) -> None:
        """Something of it has come. From any thread."""
        with self._lock:
            self._due[study] = time.monotonic() + self.quiet_seconds

    def next(self) -> str | None:
        """A study that has been quiet for long enough; it is due no more until something of it comes."""
        with self._lock:
            now = time.monotonic()
            due = min(
                (study for study, at in self._due.items() if at <= now),
                key=self._due.__getitem__,
                default=None,
            )
            if due is not None:
                del self._due[due]
            return due

    def look(self, study: str) -> list[Outcome]:
        """Predict, write all of it in the place of an earlier result, and store it; or only store what is there already.

        Raises:
            Exception: whatever a model or a decoder met; the study is not tried again until more of it comes.
            ArchiveError, OSError: it could not be stored, and will be again.
        """
        outcomes: list[Outcome] = []
        looked = self._looked(study)
        if looked.get("files") != self._files(study):
            outcomes = self._predicted(study)
        self._stored(study)
        return outcomes

    def _predicted(self, study: str) -> list[Outcome]:
        files, made = self._files(study), self.results / _UNFINISHED / study
        shutil.rmtree(made, ignore_errors=True)
        made.mkdir(parents=True)
        try:
            outcomes = list(predict_study(self.folder / study, self.models, made, self.wanted, self.wish))
            write_page(made, outcomes, self.models)
        except Exception as error:
            self._note_looked(made, files, problem=type(error).__name__)
            self._put(made, study)
            raise
        written = [file.name for outcome in outcomes for file in outcome.files]
        self._note_looked(made, files, to_store=written)
        self._put(made, study)
        return outcomes

    def _stored(self, study: str) -> None:
        looked = self._looked(study)
        names = looked.get("to_store", [])
        if self.store is None or not names:
            return
        try:
            self.store([self.results / study / name for name in names])
        except Exception:
            with self._lock:
                self._due.setdefault(study, time.monotonic() + _AGAIN_SECONDS)
            raise
        self._note_looked(self.results / study, looked["files"])

    def _put(self, made: Path, study: str) -> None:
        shutil.rmtree(self.results / study, ignore_errors=True)
        made.replace(self.results / study)

    def _is_done(self, study: str) -> bool:
        looked = self._looked(study)
        is_stored = self.store is None or not looked.get("to_store")
        return looked.get("files") == self._files(study) and is_stored

    def _files(self, study: str) -> list[str]:
        root = self.folder / study
        return sorted(str(file.relative_to(root)) for file in root.rglob("*") if file.is_file())

    def _looked(self, study: str) -> dict[str, list[str]]:
        try:
            found: dict[str, list[str]] = json.loads((self.results / study / LOOKED).read_bytes())
        except (OSError, ValueError):
            return {}
        return found

    @staticmethod
    def _note_looked(
        folder: Path, files: list[str], *, to_store: Sequence[str] = (), problem: str = ""
    ) -> None:
        document = {"files": files, "to_store": list(to_store), "problem": problem}
        write_atomically(folder / LOOKED, json.dumps(document, indent=1).encode(), mode=0o600)
