"""A site's cases, prepared once and kept as memory-mapped arrays.

``<folder>/cache/<key>/`` holds per case ``<id>.image.npy`` and ``<id>.label.npy``, and for all of them ``points.npy``
and ``manifest.json``. The key covers the source files' sizes and times, the label table, the installed DICOM decoders
and the settings that shape the arrays: nothing else, so a changed seed or split makes no new cache. A cache is written
aside and renamed when it is whole; a crash leaves none. The manifest names patients, so the folder is readable by its
owner alone and never leaves the site.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from fedmed_client.data.cases import FileStamp, find_cases, source_files
from fedmed_client.data.index import Skipped
from fedmed_client.data.labels import annotated
from fedmed_client.data.preprocess import Label, Prepared, prepare
from fedmed_client.data.rawcase import RawCase
from fedmed_client.data.whole import prepare_whole
from fedmed_client.data.workers import in_order
from fedmed_common.config import Data, Experiment, Site, Task
from fedmed_common.errors import ConfigError, DataError, FedmedError, LabelError
from fedmed_common.files import sync_folder, write_atomically

PREPARATION = 1
"""Raise when preprocessing changes what it writes: older caches are then no longer used."""
POINTS_PER_CLASS = 2000
_DECODERS = ("gdcm", "libjpeg", "openjpeg", "pylibjpeg", "rle")


class Entry(BaseModel):
    """One cached case. ``points``: rows in ``points.npy`` per class; ``digest``: SHA-256 of the two arrays."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    id: str
    patient: str
    spacing_mm: tuple[float, float, float]
    present: tuple[bool, ...]
    points: tuple[int, ...]
    digest: str


class Left(BaseModel):
    """What could not be used; see ``index.Skipped``."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    path: str
    code: str
    reason: str


class Manifest(BaseModel):
    """What a cache holds, in the order of (patient, path)."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    classes: tuple[str, ...]
    annotated: tuple[bool, ...]
    oriented: bool
    cases: tuple[Entry, ...]
    skipped: tuple[Left, ...]


class Arrays(BaseModel):
    """Where preparation writes, and how."""

    model_config = ConfigDict(frozen=True)
    folder: Path
    data: Data
    task: Task


def ready_cache(
    site: Site, experiment: Experiment, folder: Path, *, progress: bool = False
) -> tuple[Path, Manifest]:
    """The folder and manifest of the site's cache, built where there is none; an existing one opens no source file.

    Raises:
        DataError: a folder is missing, no case is usable, or the cache was damaged.
        LabelError: a label name is unmapped or ambiguous.
    """
    parent = folder / "cache"
    cache = parent / _key(site, experiment, source_files(site, excluding=folder))
    if not cache.is_dir():
        parent.mkdir(parents=True, exist_ok=True)
        with _alone(parent / "lock"):
            if not cache.is_dir():
                _build(site, experiment, folder, cache, progress)
    try:
        return cache, Manifest.model_validate_json((cache / "manifest.json").read_bytes())
    except (OSError, ValidationError) as error:
        raise DataError(
            f"the cache {cache} is damaged ({type(error).__name__})\n  fix: delete this folder"
        ) from None


_DATA = {
    "channels",
    "spacing_mm",
    "intensity",
    "crop_to_foreground",
    "bias_correction",
    "modalities",
    "intensities",
    "fusion",
}
"""Settings of an experiment that a prepared case depends on."""


def _key(site: Site, experiment: Experiment, files: Sequence[FileStamp]) -> str:
    document: dict[str, Any] = {
        "preparation": PREPARATION,
        "files": files,
        "site": site.model_dump(
            mode="json",
            include={"data": True, "labels": True, "ignore_labels": True},
            exclude={"data": {"root", "labels_from", "table"}},
        ),
        "data": experiment.data.model_dump(
            mode="json",
            include=_DATA,
        ),
        "task": experiment.task.model_dump(mode="json", include={"classes", "dimensions"}),
    }
    if experiment.task.name == "classification":
        document["classification"] = {
            "labels": experiment.task.labels,
            "patch": experiment.data.patch,
            "table": str(site.data.table) if site.data.labels_from == "table" else None,
        }
    if site.data.format == "dicom":  # a case that no decoder could read is prepared once there is one
        document["decoders"] = [name for name in _DECODERS if find_spec(name) is not None]
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()[:32]


def _build(site: Site, experiment: Experiment, folder: Path, cache: Path, progress: bool) -> None:
    for left_over in cache.parent.glob(".building-*"):
        shutil.rmtree(left_over)
    building = Path(tempfile.mkdtemp(prefix=".building-", dir=cache.parent))
    try:
        _fill(site, experiment, building, folder / "scan.index", progress)
        sync_folder(building)
        building.rename(cache)
        sync_folder(cache.parent)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise


def _fill(site: Site, experiment: Experiment, building: Path, index_file: Path, progress: bool) -> None:
    found = find_cases(site, experiment, index_file=index_file, progress=progress)
    classes = experiment.task.classes
    arrays = Arrays(folder=building, data=experiment.data, task=experiment.task)
    results = in_order(
        partial(prepare_case, arrays=arrays),
        found.cases,
        _crashed,
        title=f"preparing {site.name}",
        progress=progress,
    )
    prepared = [result[0] for result in results if not isinstance(result, Skipped)]
    points = [result[1] for result in results if not isinstance(result, Skipped)]
    skipped = [*found.skipped, *(result for result in results if isinstance(result, Skipped))]
    if not prepared:
        raise _nothing_usable(site, skipped)
    manifest = Manifest(
        classes=classes,
        annotated=annotated(site, classes),
        oriented=site.data.format != "images",
        cases=tuple(prepared),
        skipped=tuple(Left(path=str(item.path), code=item.code, reason=item.reason) for item in skipped),
    )
    _drop_arrays_of_the_dead(building, prepared)
    _save(building / "points.npy", np.concatenate(points))
    write_atomically(building / "manifest.json", manifest.model_dump_json(indent=1).encode())


def prepare_case(case: RawCase, arrays: Arrays) -> tuple[Entry, NDArray[np.int32]] | Skipped:
    """Read one case, prepare it and write its arrays; a case that cannot be used comes back as skipped.

    Raises:
        LabelError: a label name is unmapped or ambiguous.
        ConfigError: preparing it needs a package that is not installed.
    """
    try:
        prepared, shows, points = _prepared(case, arrays)
    except (LabelError, ConfigError, MemoryError):
        raise
    except Exception as error:  # whatever one file does to a reader, the others are still to be used
        code = error.code if isinstance(error, FedmedError) else DataError.code
        reason = str(error) if isinstance(error, FedmedError) else f"{type(error).__name__}: {error}"
        return Skipped(path=case.path, code=code, reason=reason)
    identity = secrets.token_hex(16)
    slices_together = arrays.task.dimensions == 2 and prepared.image.shape[3] > 1
    layout: Any = np.asfortranarray if slices_together else np.ascontiguousarray
    image, label = layout(prepared.image), layout(prepared.label)
    _save(arrays.folder / f"{identity}.image.npy", image)
    _save(arrays.folder / f"{identity}.label.npy", label)
    digest = hashlib.sha256(repr((image.shape, prepared.spacing_mm)).encode())
    digest.update(image.tobytes("K"))
    digest.update(label.tobytes("K"))
    entry = Entry(
        id=identity,
        patient=case.patient,
        spacing_mm=prepared.spacing_mm,
        present=shows,
        points=tuple(len(part) for part in points),
        digest=digest.hexdigest(),
    )
    return entry, np.concatenate(points)


def _prepared(case: RawCase, arrays: Arrays) -> tuple[Prepared, tuple[bool, ...], list[NDArray[np.int32]]]:
    """The arrays, which classes they show, and of a segmentation the places that show them."""
    classes = len(arrays.task.classes)
    if arrays.task.name == "classification":
        whole, shows = prepare_whole(*case.load(), case.shows, arrays.data, arrays.task)
        return whole, shows, [np.zeros((0, 3), np.int32)] * classes
    prepared = prepare(*case.load(), arrays.data)
    points = class_points(prepared.label, classes)
    return prepared, tuple(len(part) > 0 for part in points), points


def class_points(label: Label, classes: int) -> list[NDArray[np.int32]]:
    """For each class ``(n, 3)`` voxel indices that show it: all of them, or an even draw of 2000, always the same."""
    places = np.flatnonzero(label)
    values = label.reshape(-1)[places]
    points = []
    for klass in range(1, classes + 1):
        mine = places[values == klass]
        if len(mine) > POINTS_PER_CLASS:
            draw = np.random.default_rng(len(mine)).choice(len(mine), POINTS_PER_CLASS, replace=False)
            mine = mine[np.sort(draw)]
        points.append(np.stack(np.unravel_index(mine, label.shape), axis=1).astype(np.int32))
    return points


def _crashed(case: RawCase) -> Skipped:
    reason = "reading or preparing it ended the process: a decoder's fault, or too little memory"
    return Skipped(path=case.path, code=DataError.code, reason=reason)


def _drop_arrays_of_the_dead(building: Path, kept: Sequence[Entry]) -> None:
    """What workers wrote whose answer was lost with a worker that died."""
    ids = {entry.id for entry in kept}
    for path in building.glob("*.npy"):
        if path.name.split(".")[0] not in ids:
            path.unlink()


def _nothing_usable(site: Site, skipped: Sequence[Skipped]) -> DataError:
    examples = "".join(f"\n  {item.path}: {item.reason}" for item in skipped[:3])
    more = f"\n  and {len(skipped) - 3} more" if len(skipped) > 3 else ""
    why = f"{examples}{more}" if skipped else "\n  it holds no file of this format"
    return DataError(
        f"{site.data.root}: site '{site.name}' has no usable case of format {site.data.format}{why}\n"
        "  fix: correct data.root and the filters below [data] of the site's file, or the files named above"
    )


@contextmanager
def _alone(file: Path) -> Iterator[None]:
    """One process at a time; the lock goes with the process that held it."""
    with file.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _save(path: Path, array: NDArray[Any]) -> None:
    with path.open("wb") as stream:
        np.save(stream, array, allow_pickle=False)
        stream.flush()
        os.fsync(stream.fileno())
