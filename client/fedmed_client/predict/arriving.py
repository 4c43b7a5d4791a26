"""Prediction for every study that arrives: once nothing more of it has come for a while, a released model looks at it."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fedmed_client.predict.page import PAGE, write_page
from fedmed_client.predict.released import Released
from fedmed_client.predict.study import Outcome, Wish, predict_study
from fedmed_common.site_config import SiteData

_UNFINISHED = ".unfinished"


@dataclass
class Arriving:
    """Studies in ``folder``, a subfolder each, and what was found in them: in ``results``, under the same names.

    ``store``: is given what was written of a study, once it is complete. A study of which more comes later is looked at again as
    a whole; one that was not looked at when the process ended is looked at by the next."""

    folder: Path
    results: Path
    models: Sequence[Released]
    wanted: SiteData | None
    wish: Wish
    quiet_seconds: float
    store: Callable[[Sequence[Path]], None] = lambda _files: None
    _came: dict[str, float] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def open(self) -> None:
        """Take up the studies that lie there without a result."""
        shutil.rmtree(self.results / _UNFINISHED, ignore_errors=True)
        for study in sorted(self.folder.iterdir()) if self.folder.is_dir() else ():
            if (
                study.is_dir()
                and not study.name.startswith(".")
                and not (self.results / study.name / PAGE).exists()
            ):
                self.note(study.name)

    def note(self, study: str) -> None:
        """Something of it has come. From any thread."""
        with self._lock:
            self._came[study] = time.monotonic()

    def next(self) -> str | None:
        """A study that has been quiet for long enough; it is due no more until something of it comes."""
        with self._lock:
            before = time.monotonic() - self.quiet_seconds
            due = min(
                (study for study, came in self._came.items() if came <= before),
                key=self._came.__getitem__,
                default=None,
            )
            if due is not None:
                del self._came[due]
            return due

    def look(self, study: str) -> list[Outcome]:
        """Predict, write all of it in the place of an earlier result, and store it.

        Raises:
            ConfigError: the model cannot predict here.
            ArchiveError, OSError: it could not be stored, or written.
        """
        made = self.results / _UNFINISHED / study
        shutil.rmtree(made, ignore_errors=True)
        made.mkdir(parents=True)
        outcomes = list(predict_study(self.folder / study, self.models, made, self.wanted, self.wish))
        write_page(made, outcomes, self.models)
        final = self.results / study
        shutil.rmtree(final, ignore_errors=True)
        made.replace(final)
        files = [final / file.name for outcome in outcomes for file in outcome.files]
        if files:
            self.store(files)
        return outcomes
