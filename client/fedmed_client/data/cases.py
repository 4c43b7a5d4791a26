"""A site's usable cases: which image belongs to which label and to which patient.

Finding opens as little as it can; a case is read when its ``load`` is called. What cannot be used is listed with a
reason and never stops the rest. A label name that the site's table does not map stops the site, since guessing would
train on it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from fedmed_client.data.index import Skipped
from fedmed_client.data.rawcase import RawCase
from fedmed_common.config import Experiment, Site
from fedmed_common.errors import DataError

FileStamp = tuple[str, int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """Cases ordered by patient and path, and what was left out with its reason."""

    cases: tuple[RawCase, ...]
    skipped: tuple[Skipped, ...]


def find_cases(
    site: Site, experiment: Experiment, *, index_file: Path | None = None, progress: bool = False
) -> Found:
    """Pair the site's images with their labels.

    ``index_file`` remembers a DICOM scan, so that the next one opens only changed files.

    Raises:
        DataError: a folder that the site names is missing.
    """
    require_root(site)
    skipped: list[Skipped] = []
    if site.data.format == "dicom":
        from fedmed_client.data.dicom_cases import dicom_cases

        cases = list(dicom_cases(site, experiment, skipped, index_file=index_file, progress=progress))
    else:
        from fedmed_client.data.paired import paired_cases

        cases = list(paired_cases(site, experiment, skipped))
    cases.sort(key=lambda case: (case.patient, case.path))
    skipped.sort(key=lambda item: (item.path, item.code, item.reason))
    return Found(cases=tuple(cases[: site.data.maximum_cases]), skipped=tuple(skipped))


def require_root(site: Site) -> None:
    """Raise DataError where the site's data folder is not there."""
    if not site.data.root.is_dir():
        raise DataError(f"{site.data.root} is not a folder\n  fix: correct data.root of site '{site.name}'")


def source_files(site: Site, *, excluding: Path) -> list[FileStamp]:
    """(path below the root, bytes, modification time in ns) of every file that a case could come from, sorted; opens none.

    ``excluding``: the site's working folder, which may lie below the root.
    """
    require_root(site)
    root, data = site.data.root, site.data
    table = (root / data.table,) if data.labels_from == "table" else ()
    folders = (root,) if data.format == "dicom" else (root / data.images, root / data.labels)
    stamps = {*_stamps(folders, root, excluding.resolve()), *_stamps_of(table, root)}
    return sorted(stamps)


def _stamps(folders: Iterable[Path], root: Path, excluding: Path) -> Iterator[FileStamp]:
    for folder in folders:
        for place, subfolders, names in os.walk(folder):
            subfolders[:] = [name for name in subfolders if Path(place, name).resolve() != excluding]
            yield from _stamps_of((Path(place, name) for name in names), root)


def _stamps_of(paths: Iterable[Path], root: Path) -> Iterator[FileStamp]:
    for path in paths:
        try:
            status = path.stat()
        except OSError:
            continue
        yield os.path.relpath(path, root), status.st_size, status.st_mtime_ns
