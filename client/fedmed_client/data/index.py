"""What a scan finds in a folder tree: image series, label objects, and the files left out with a reason."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

LabelKind = Literal["seg", "rtstruct"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """Images of one series that form one volume, one picture or one multi-frame object.

    ``patient``: normalised ``"id|issuer"``. ``files`` in the order of their paths, ``instances`` their SOP
    instance UIDs in the same order; ``series.load_series`` sorts them in space. A DICOM series that mixes a
    localizer, several orientations, matrix sizes or image types comes as several ``Series`` with one ``uid``.
    """

    uid: str
    patient: str
    study_uid: str
    frame_of_reference: str
    modality: str
    description: str
    files: tuple[Path, ...]
    instances: tuple[str, ...]
    manufacturer: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelObject:
    """A DICOM SEG or RTSTRUCT, and the images it says it was drawn on."""

    kind: LabelKind
    path: Path
    patient: str
    frame_of_reference: str
    referenced_series: tuple[str, ...]
    referenced_instances: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Skipped:
    """A file left out: ``code`` is a short phrase of our own, ``reason`` is for the person at this machine."""

    path: Path
    code: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Index:
    """Everything found, sorted by path; the same tree always gives the same index."""

    series: tuple[Series, ...]
    labels: tuple[LabelObject, ...]
    skipped: tuple[Skipped, ...]
