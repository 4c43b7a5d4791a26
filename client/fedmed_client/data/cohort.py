"""A site's cases for one experiment, each patient on one side of the split."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedmed_client.data.cache import Entry, Manifest, ready_cache
from fedmed_client.data.index import Skipped
from fedmed_client.data.splits import Split, split_patients
from fedmed_common.config import Experiment, Site
from fedmed_common.errors import DataError


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Case:
    """One annotated image, its arrays mapped from the site's cache and read-only.

    ``id``: random and local; nothing may depend on it. ``patient``: a number within the cohort. ``image``: float32
    ``(C, X, Y, Z)``; ``label``: uint8 ``(X, Y, Z)``, 0 background, k the k-th class; for a classification ``(K, 1, N)``,
    1 where sample n shows class k (see ``whole``). ``annotated``, ``present``, ``points``: by class; ``points`` are
    ``(n, 3)`` indices of voxels that show it, for a classification none. ``oriented``: the axes point right, anterior,
    superior; not so in a photograph.
    """

    id: str
    patient: int
    split: Split
    image: NDArray[np.float32]
    label: NDArray[np.uint8]
    spacing_mm: tuple[float, float, float]
    annotated: tuple[bool, ...]
    present: tuple[bool, ...]
    points: tuple[NDArray[np.int32], ...]
    oriented: bool
    digest: str = ""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Cohort:
    """Cases in an order that depends on the data alone.

    ``manifest_hash``: equal where prepared arrays, patients and splits are equal, on any machine. ``skipped`` names
    files and stays at the site; so do ``keys``, which are the site's own of each patient, by ``Case.patient``.
    """

    site: str
    classes: tuple[str, ...]
    cases: tuple[Case, ...]
    manifest_hash: str
    skipped: tuple[Skipped, ...]
    keys: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"Cohort({self.site!r}, {len(self.cases)} cases, {self.manifest_hash[:12]})"

    def of(self, split: Split) -> tuple[Case, ...]:
        """The cases of one split."""
        return tuple(case for case in self.cases if case.split == split)

    def patients(self, split: Split) -> int:
        """How many patients a split has."""
        return len({case.patient for case in self.of(split)})

    def presence(self, split: Split = "train") -> dict[str, int]:
        """For each class annotated here, how many of the split's patients show it."""
        counts = {}
        for number, klass in enumerate(self.classes):
            if any(case.annotated[number] for case in self.cases):
                counts[klass] = len({case.patient for case in self.of(split) if case.present[number]})
        return counts


def open_cohort(
    site: Site,
    experiment: Experiment,
    folder: Path,
    *,
    progress: bool = False,
    withdrew: Callable[[str], bool] = lambda _key: False,
) -> Cohort:
    """The site's cohort; prepares and caches its cases on the first call, reads no source file on later ones.

    Args:
        folder: the site's own working folder; the cache goes into it.
        withdrew: whether a patient is to be left out, by the site's key; the others keep the splits that they had.

    Raises:
        DataError: a folder is missing, no case is usable, or the cache was damaged.
        LabelError: a label name is unmapped or ambiguous.
    """
    cache, manifest = ready_cache(site, experiment, folder, progress=progress)
    shows: dict[str, set[int]] = {}
    for entry in manifest.cases:
        shows.setdefault(entry.patient, set()).update(np.flatnonzero(entry.present).tolist())
    splits = split_patients(shows, experiment.data.splits, experiment.seed)
    left = {key for key in shows if not withdrew(key)}
    if not left:
        raise DataError(f"all patients of '{site.name}' withdrew\n  fix: leave the experiment")
    try:
        cases = _map_cases(cache, manifest, splits, patient_numbers(manifest), left)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(
            f"the cache {cache} is damaged ({type(error).__name__})\n  fix: delete this folder"
        ) from None
    return Cohort(
        site=site.name,
        classes=manifest.classes,
        cases=cases,
        manifest_hash=_manifest_hash(manifest, cases, left),
        keys=tuple(patient_numbers(manifest)),
        skipped=tuple(
            Skipped(path=Path(left.path), code=left.code, reason=left.reason) for left in manifest.skipped
        ),
    )


def patient_numbers(manifest: Manifest) -> dict[str, int]:
    """The site's own key of each patient -> ``Case.patient`` in the site's cohort."""
    return {
        patient: number for number, patient in enumerate(sorted({entry.patient for entry in manifest.cases}))
    }


def by_patient(cases: Iterable[Case]) -> dict[int, list[Case]]:
    """The cases of each patient, by ``Case.patient``, in the order in which they come."""
    found: dict[int, list[Case]] = {}
    for case in cases:
        found.setdefault(case.patient, []).append(case)
    return found


def pool(cohorts: Sequence[Cohort], name: str) -> Cohort:
    """All cases of several cohorts as one; every patient keeps the split, and patients of different cohorts stay different.

    Raises:
        DataError: the cohorts were prepared for different classes.
    """
    if not cohorts or any(cohort.classes != cohorts[0].classes for cohort in cohorts):
        raise DataError("only cohorts of the same classes can be pooled, and at least one")
    numbers: dict[tuple[int, int], int] = {}
    cases = [
        replace(case, patient=numbers.setdefault((place, case.patient), len(numbers)))
        for place, cohort in enumerate(cohorts)
        for case in cohort.cases
    ]
    return Cohort(
        site=name,
        classes=cohorts[0].classes,
        cases=tuple(cases),
        manifest_hash=_digest(*(cohort.manifest_hash for cohort in cohorts)),
        skipped=tuple(item for cohort in cohorts for item in cohort.skipped),
    )


def regroup(cohort: Cohort, name: str, patient_indices: Collection[int]) -> Cohort:
    """The cases of some patients, by ``Case.patient``, as a site of its own; patients keep number and split.

    Raises:
        DataError: a number is no patient of the cohort.
    """
    wanted = set(patient_indices)
    unknown = wanted - {case.patient for case in cohort.cases}
    if unknown:
        raise DataError(
            f"'{name}' asks for patients {sorted(unknown)[:5]}, which '{cohort.site}' does not have"
        )
    return Cohort(
        site=name,
        classes=cohort.classes,
        cases=tuple(case for case in cohort.cases if case.patient in wanted),
        manifest_hash=_digest(cohort.manifest_hash, repr(sorted(wanted))),
        skipped=(),
    )


def without_annotation(cohort: Cohort, classes: Collection[int]) -> Cohort:
    """The cohort as if some classes, by their place in ``Cohort.classes``, had not been looked for.

    The label arrays stay as they are: what they show of such a class is background to the losses, and nothing to the scores.
    """
    hidden = set(classes)
    if not hidden:
        return cohort
    nowhere = np.zeros((0, 3), np.int32)
    cases = tuple(
        replace(
            case,
            annotated=tuple(known and k not in hidden for k, known in enumerate(case.annotated)),
            present=tuple(shown and k not in hidden for k, shown in enumerate(case.present)),
            points=tuple(nowhere if k in hidden else points for k, points in enumerate(case.points)),
        )
        for case in cohort.cases
    )
    digest = _digest(cohort.manifest_hash, f"without {sorted(hidden)}")
    return replace(cohort, cases=cases, manifest_hash=digest)


def _map_cases(
    cache: Path,
    manifest: Manifest,
    splits: dict[str, Split],
    numbers: dict[str, int],
    left: Collection[str],
) -> tuple[Case, ...]:
    points, row, cases = _mapped(cache / "points.npy"), 0, []
    for entry in manifest.cases:
        if entry.patient not in left:
            row += sum(entry.points)
            continue
        cases.append(
            Case(
                id=entry.id,
                patient=numbers[entry.patient],
                split=splits[entry.patient],
                image=_mapped(cache / f"{entry.id}.image.npy"),
                label=_mapped(cache / f"{entry.id}.label.npy"),
                spacing_mm=entry.spacing_mm,
                annotated=manifest.annotated,
                present=entry.present,
                points=_rows(points, row, entry),
                oriented=manifest.oriented,
                digest=entry.digest,
            )
        )
        row += sum(entry.points)
    return tuple(cases)


def _rows(points: NDArray[np.int32], row: int, entry: Entry) -> tuple[NDArray[np.int32], ...]:
    ends = row + np.cumsum((0, *entry.points))
    return tuple(points[start:end] for start, end in pairwise(ends))


def _mapped(path: Path) -> NDArray[Any]:
    """An array still on disk; its pages are read when they are used."""
    return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))


def _manifest_hash(manifest: Manifest, cases: Sequence[Case], left: Collection[str]) -> str:
    entries = [entry for entry in manifest.cases if entry.patient in left]
    lines = [repr((manifest.classes, manifest.annotated))]
    lines += [
        repr((entry.digest, case.patient, case.split)) for entry, case in zip(entries, cases, strict=True)
    ]
    return _digest(*lines)


def _digest(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
