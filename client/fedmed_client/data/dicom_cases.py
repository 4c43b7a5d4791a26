"""Format dicom: an image series with every label object drawn on it.

Beside SEG and RTSTRUCT, a NIfTI file in the folder of a series' files is a label where its stem is ``labels``, the
folder's name or the series' UID; its integers, as strings, are the label names. ``labels`` and the folder's name count
only where the folder holds one series of those wanted. Several labels of one series are joined; a case with one label
that cannot be read is left out as a whole, since what that label shows would otherwise train as background.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedmed_client.data.index import LabelObject, Series, Skipped
from fedmed_client.data.label_table import read_table
from fedmed_client.data.labels import assign, flatten, relabel
from fedmed_client.data.match import match
from fedmed_client.data.modalities import companions, fits, joined, modality_of
from fedmed_client.data.nifti import read_nifti_label
from fedmed_client.data.rawcase import Loaded, RawCase, only_names_stop_the_site
from fedmed_client.data.rtstruct import read_rtstruct, region_names
from fedmed_client.data.scan import scan
from fedmed_client.data.seg import read_seg, segment_names
from fedmed_client.data.series import load_series
from fedmed_client.data.text import normalise_patient, printable, without_issuer
from fedmed_client.data.volume import Volume
from fedmed_common.config import Experiment, Site, SiteData
from fedmed_common.errors import DataError

NIFTI_SUFFIXES = (".nii.gz", ".nii")
_READERS: dict[str, tuple[Callable[[Path], Any], Callable[..., Any]]] = {
    "seg": (segment_names, read_seg),
    "rtstruct": (region_names, read_rtstruct),
}


def dicom_cases(
    site: Site, experiment: Experiment, skipped: list[Skipped], *, index_file: Path | None, progress: bool
) -> Iterator[RawCase]:
    """The wanted series that have a label; the others, and labels without a series, go to ``skipped``."""
    index = scan(site.data.root, index_file=index_file, progress=progress)
    wanted = [
        series
        for series in index.series
        if is_wanted(series, site.data, several=bool(experiment.data.modalities))
    ]
    if site.data.labels_from == "table":
        yield from _tabled_cases(site, experiment, wanted, skipped)
        return
    labels: dict[Path, list[LabelObject]] = defaultdict(list)
    for label in index.labels:
        try:
            labels[match(label, index.series).files[0]].append(label)
        except DataError as error:
            skipped.append(Skipped(path=label.path, code=error.code, reason=str(error)))
    beside = _nifti_labels(wanted)
    used = {path for paths in beside.values() for path in paths}
    skipped.extend(item for item in index.skipped if item.path not in used)
    known = _known(wanted, site, experiment, skipped)
    labelled = {series.study_uid for series in wanted if labels[series.files[0]] or beside[series.files[0]]}
    for series in wanted:
        first = series.files[0]
        if labels[first] or beside[first]:
            try:
                images = _images(series, known, site, experiment)
            except DataError as error:
                skipped.append(Skipped(path=first, code=error.code, reason=str(error)))
                continue
            load = partial(load_case, images, labels[first], beside[first], site=site, experiment=experiment)
            yield RawCase(patient=series.patient, path=first, load=load)
        elif not experiment.data.modalities or series.study_uid not in labelled:
            skipped.append(Skipped(path=first, code=DataError.code, reason="no label belongs to this series"))


def _known(
    wanted: Sequence[Series], site: Site, experiment: Experiment, skipped: list[Skipped]
) -> list[tuple[str, Series]]:
    """The series that are of a modality, where the experiment asks for several; those that fit two are left out."""
    known: list[tuple[str, Series]] = []
    for series in wanted if experiment.data.modalities else ():
        try:
            modality = modality_of(series, site.data)
        except DataError as error:
            skipped.append(Skipped(path=series.files[0], code=error.code, reason=str(error)))
            continue
        if modality is not None:
            known.append((modality, series))
    return known


def _images(
    series: Series, known: Sequence[tuple[str, Series]], site: Site, experiment: Experiment
) -> Callable[[], Volume]:
    """How the image of a labelled series is read: it alone, or with those of the other modalities."""
    if not experiment.data.modalities:
        return partial(load_series, series)
    mine = next((name for name, one in known if one is series), None)
    if mine not in experiment.data.modalities:
        raise DataError(
            f"the labelled series '{printable(series.description)}' is none of the experiment's modalities by site.toml"
        )
    return partial(volume_of, companions(series, known, experiment, site.data), mine, experiment, site.data)


def volume_of(parts: Mapping[str, Series], fixed: str, experiment: Experiment, data: SiteData) -> Volume:
    """All series of a case on the grid of the ``fixed`` one."""
    return joined(
        {name: partial(load_series, series) for name, series in parts.items()}, fixed, experiment, data
    )


def _tabled_cases(
    site: Site, experiment: Experiment, wanted: Sequence[Series], skipped: list[Skipped]
) -> Iterator[RawCase]:
    """The series that have, or whose patient has, a row in the site's table."""
    table = read_table(
        site, experiment, lambda key, cell: normalise_patient(cell, "") if key == "PatientID" else cell
    )
    by_patient = table.key == "PatientID"
    keys = [without_issuer(series.patient) if by_patient else series.uid for series in wanted]
    people: dict[str, set[str]] = defaultdict(set)
    for key, series in zip(keys, wanted, strict=True):
        people[key].add(series.patient)
    for key in table.shows.keys() - people.keys():
        reason = f"row {table.rows[key]}: no series that is wanted here has this {table.key}"
        skipped.append(Skipped(path=table.path, code=DataError.code, reason=reason))
    for key, series in zip(keys, wanted, strict=True):
        first = series.files[0]
        if key not in table.shows:
            reason = f"its {table.key} has no row in {table.path}"
            skipped.append(Skipped(path=first, code=DataError.code, reason=reason))
        elif len(people[key]) > 1:
            reason = f"patients of several issuers have this {table.key}; name SeriesInstanceUID in {table.path} instead"
            skipped.append(Skipped(path=first, code=DataError.code, reason=reason))
        else:
            load = partial(load_without_mask, series)
            yield RawCase(patient=series.patient, path=first, load=load, shows=table.shows[key])


def load_without_mask(series: Series) -> Loaded:
    """A series with an empty label map."""
    volume = load_series(series)
    return volume, np.zeros(volume.shape, np.uint8)


def load_case(
    images: Callable[[], Volume],
    labels: Sequence[LabelObject],
    beside: Sequence[Path],
    *,
    site: Site,
    experiment: Experiment,
) -> Loaded:
    """An image, as ``images`` reads it, and its labels on one grid.

    Raises:
        LabelError: a label name is unmapped or ambiguous.
        DataError: one of the files cannot be used.
    """
    classes = experiment.task.classes
    assignments = [_assignment(label, site, classes) for label in labels]
    with only_names_stop_the_site():
        volume = images()
    result = np.zeros(volume.shape, np.uint8)
    for label, assignment in zip(labels, assignments, strict=True):
        np.maximum(result, _label_map(label, assignment, volume), out=result)
    for path in beside:
        with only_names_stop_the_site():
            values = read_nifti_label(path, volume)
        np.maximum(result, relabel(values, site, classes, source=path), out=result)
    return volume, result


def _assignment(label: LabelObject, site: Site, classes: Sequence[str]) -> list[int]:
    with only_names_stop_the_site():
        names = _READERS[label.kind][0](label.path)
    return assign(names, site, classes, source=label.path)


def _label_map(label: LabelObject, assignment: list[int], volume: Volume) -> NDArray[np.uint8]:
    read = _READERS[label.kind][1]
    with only_names_stop_the_site():
        masks = read(label.path, volume, wanted=[place for place, klass in enumerate(assignment) if klass])
        return flatten(masks, assignment)


def is_wanted(series: Series, data: SiteData, *, several: bool = False) -> bool:
    """Whether the site's filters let the series through. ``several``: for cases of several modalities."""
    if several:
        return any(fits(series, asked) for asked in data.modalities.values())
    return fits(series, data)


def _nifti_labels(wanted: Sequence[Series]) -> dict[Path, list[Path]]:
    """The NIfTI labels of each series, by its first file."""
    folders: dict[Path, list[Series]] = defaultdict(list)
    for series in wanted:
        for folder in sorted({path.parent for path in series.files}):
            folders[folder].append(series)
    found: dict[Path, list[Path]] = defaultdict(list)
    for folder, members in folders.items():
        for series in members:
            stems = [series.uid] if [other.uid for other in members].count(series.uid) == 1 else []
            stems += ["labels", folder.name] if len(members) == 1 else []
            names = dict.fromkeys(stem + suffix for stem in stems for suffix in NIFTI_SUFFIXES)
            found[series.files[0]] += [folder / name for name in names if (folder / name).is_file()]
    return found
