"""Find the DICOM series and label objects in a folder tree of any mixture of files."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from fedmed_client.data.geometry import SAME_ORIENTATION
from fedmed_client.data.header_pool import read_headers
from fedmed_client.data.headers import Header, Refused, from_json
from fedmed_client.data.index import Index, LabelKind, LabelObject, Series, Skipped
from fedmed_client.data.index_store import IndexStore, Stamp, default_index_file
from fedmed_client.data.text import printable
from fedmed_common.errors import ConfigError

__all__ = ["Index", "LabelObject", "Series", "Skipped", "default_index_file", "scan"]

_FILES_PER_COMMIT = 500


def scan(folder: Path, *, index_file: Path | None = None, workers: int = 0, progress: bool = False) -> Index:
    """Index all files under ``folder``, reading headers only.

    ``index_file`` (SQLite) remembers what was read: a second scan opens only files whose size or modification
    time changed, and a scan that was killed continues where it stopped. ``workers``: processes that read; 0 means
    as many as are worth it. Links to folders are not followed. Of several files with one SOP instance UID, the
    first by path counts. A file that cannot be used never raises: it is in ``Index.skipped`` with its reason.

    Raises ConfigError when ``folder`` is not a folder or ``index_file`` is not an index.
    """
    folder = folder.absolute()
    if not folder.is_dir():
        raise ConfigError("is not a folder", file=folder, fix="name the folder that holds the images")
    files, skipped = _walk(folder)
    with IndexStore(index_file) as store:
        found = _read_changed(folder, files, store, workers=workers, progress=progress)
    return _assemble(folder, found, skipped)


def _walk(folder: Path) -> tuple[dict[Path, Stamp], list[Skipped]]:
    """All ordinary files below ``folder`` with their stamps; what cannot be entered or opened is skipped."""
    files: dict[Path, Stamp] = {}
    skipped: list[Skipped] = []
    folders = [folder]
    while folders:
        current = folders.pop()
        try:
            entries = sorted(os.scandir(current), key=lambda entry: entry.name)
        except OSError as error:
            skipped.append(
                Skipped(path=current, code="no-access", reason=f"cannot be listed: {error.strerror}")
            )
            continue
        for entry in entries:
            path = current / entry.name
            outcome = _inspect(entry)
            if isinstance(outcome, Refused):
                skipped.append(Skipped(path=path, code=outcome.code, reason=outcome.reason))
            elif outcome is None:
                folders.append(path)
            else:
                files[path] = outcome
    return files, skipped


def _inspect(entry: os.DirEntry[str]) -> Stamp | Refused | None:
    """A file's stamp, None for a folder. Pipes and devices are refused: opening one could wait for ever."""
    try:
        if entry.is_dir(follow_symlinks=False):
            return None
        status = entry.stat()
    except OSError as error:
        return Refused("no-access", f"cannot be opened: {error.strerror}")
    if stat.S_ISDIR(status.st_mode):
        return Refused("link-to-folder", "a link to a folder: scan that folder itself")
    if not stat.S_ISREG(status.st_mode):
        return Refused("not-a-file", "a pipe, socket or device")
    return status.st_size, status.st_mtime_ns


def _read_changed(
    folder: Path, files: dict[Path, Stamp], store: IndexStore, *, workers: int, progress: bool
) -> dict[Path, Header | Refused]:
    known = store.recall(folder)
    found: dict[Path, Header | Refused] = {}
    changed = []
    for path, stamp in files.items():
        remembered = known.pop(os.fsencode(path), None)
        if remembered and remembered[0] == stamp:
            found[path] = from_json(remembered[1])
        else:
            changed.append(path)
    store.forget(known)
    batch: list[tuple[Path, Stamp, Header | Refused]] = []
    try:
        for path, outcome in _shown(read_headers(changed, workers), len(changed), progress):
            found[path] = outcome
            if isinstance(outcome, Header) or outcome.lasting:
                batch.append((path, files[path], outcome))
            if len(batch) >= _FILES_PER_COMMIT:
                store.remember(batch)
                batch.clear()
    finally:
        store.remember(batch)
    return found


def _shown(
    results: Iterator[tuple[Path, Header | Refused]], total: int, progress: bool
) -> Iterator[tuple[Path, Header | Refused]]:
    columns = (TextColumn("reading headers"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, transient=True, disable=not progress) as bar:
        yield from bar.track(results, total=total)


def _assemble(folder: Path, found: dict[Path, Header | Refused], skipped: list[Skipped]) -> Index:
    images: list[tuple[Path, Header]] = []
    labels: list[LabelObject] = []
    first: dict[str, Path] = {}
    for path in sorted(found):
        outcome = found[path]
        if isinstance(outcome, Refused):
            skipped.append(Skipped(path=path, code=outcome.code, reason=outcome.reason))
        elif first.setdefault(outcome.instance, path) != path:
            other = printable(str(first[outcome.instance].relative_to(folder)))
            reason = f"has the SOP instance UID of {other}"
            skipped.append(Skipped(path=path, code="duplicate-instance", reason=reason))
        elif outcome.kind == "image":
            images.append((path, outcome))
        else:
            labels.append(_label(path, outcome.kind, outcome))
    return Index(
        series=tuple(sorted((_series(group) for group in _groups(images)), key=lambda series: series.files)),
        labels=tuple(labels),
        skipped=tuple(sorted(skipped, key=lambda item: item.path)),
    )


def _groups(images: Iterable[tuple[Path, Header]]) -> Iterator[list[tuple[Path, Header]]]:
    """Images of one series, frame of reference, matrix, image type and orientation."""
    alike: dict[tuple[str, ...], list[list[tuple[Path, Header]]]] = {}
    for path, header in images:
        key = (header.series, header.patient, header.frame_of_reference, *header.split)
        groups = alike.setdefault(key, [])
        for group in groups:
            if _parallel(group[0][1].orientation, header.orientation):
                group.append((path, header))
                break
        else:
            groups.append([(path, header)])
    for groups in alike.values():
        yield from groups


def _parallel(one: Sequence[float], other: Sequence[float]) -> bool:
    return len(one) == len(other) and all(
        abs(a - b) <= SAME_ORIENTATION for a, b in zip(one, other, strict=True)
    )


def _series(group: Sequence[tuple[Path, Header]]) -> Series:
    header = group[0][1]
    return Series(
        uid=header.series,
        patient=header.patient,
        study_uid=header.study,
        frame_of_reference=header.frame_of_reference,
        modality=header.modality,
        description=header.description,
        files=tuple(path for path, _ in group),
        instances=tuple(header.instance for _, header in group),
        manufacturer=header.manufacturer,
    )


def _label(path: Path, kind: LabelKind, header: Header) -> LabelObject:
    return LabelObject(
        kind=kind,
        path=path,
        patient=header.patient,
        frame_of_reference=header.frame_of_reference,
        referenced_series=header.referenced_series,
        referenced_instances=header.referenced_instances,
    )
