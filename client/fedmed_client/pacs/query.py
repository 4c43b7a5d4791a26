"""What is looked for in an archive, and what was found, whatever the protocol."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Protocol

from pydicom.dataset import Dataset

from fedmed_common.errors import DataError

_UID = re.compile(r"(?=.{1,64}\Z)[0-9]+(\.[0-9]+)*", re.ASCII)


_LONGEST_NUMBER = 10


class ArchiveError(DataError):
    """The archive cannot be reached, or does not do what it was asked."""

    code = "archive"


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """Series of these modalities, studies of these days (both included), descriptions that match, accession numbers.

    What is empty does not matter."""

    modalities: tuple[str, ...] = ()
    since: date | None = None
    until: date | None = None
    description: re.Pattern[str] | None = None
    accessions: tuple[str, ...] = ()

    @property
    def days(self) -> str:
        """As DICOM matches a range of dates (PS3.4 C.2.2.2.5); empty: any."""
        if self.since is None and self.until is None:
            return ""
        return "-".join("" if day is None else f"{day:%Y%m%d}" for day in (self.since, self.until))

    def fits(self, found: FoundSeries) -> bool:
        """Whether a series is wanted: archives are asked for no more than their protocols can match."""
        if self.modalities and found.modality not in self.modalities:
            return False
        return self.description is None or self.description.search(found.description) is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundSeries:
    """A series in an archive. ``images``: how many the archive says that it has; None: it does not say."""

    study: str
    series: str
    modality: str
    description: str
    day: str
    images: int | None

    @classmethod
    def of(cls, study: Dataset, series: Dataset) -> FoundSeries | None:
        """From an archive's answers; None where a UID is missing or is none, for it becomes a folder's name."""
        uids = [str(study.get("StudyInstanceUID") or ""), str(series.get("SeriesInstanceUID") or "")]
        if not all(_UID.fullmatch(uid) for uid in uids):
            return None
        number = str(series.get("NumberOfSeriesRelatedInstances") or "")
        return cls(
            study=uids[0],
            series=uids[1],
            modality=str(series.get("Modality") or ""),
            description=str(series.get("SeriesDescription") or ""),
            day=str(study.get("StudyDate") or ""),
            images=int(number) if number.isdecimal() and len(number) < _LONGEST_NUMBER else None,
        )


Keep = Callable[[bytes], object]
"""Is given each instance as it comes, as a whole DICOM file."""


class Archive(Protocol):
    """A connection to a picture archive. All methods raise ArchiveError where it does not answer as it should."""

    def echo(self) -> None:
        """Whether it answers."""

    def find(self, query: Query) -> Iterator[FoundSeries]:
        """The series that fit."""

    def fetch(self, series: FoundSeries, keep: Keep) -> None:
        """Have all instances of a series."""

    def send(self, files: Sequence[Path]) -> None:
        """Store files in it."""


def is_uid(text: str) -> bool:
    """Whether a text can be a UID, and so a part of a path."""
    return _UID.fullmatch(text) is not None
