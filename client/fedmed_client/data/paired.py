"""Formats nifti and images: an image and its label have the same file name in two folders."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import nibabel
import numpy as np
from numpy.typing import NDArray

from fedmed_client.data.images import read_image, read_mask, semantic
from fedmed_client.data.index import Skipped
from fedmed_client.data.label_table import read_table
from fedmed_client.data.labels import relabel
from fedmed_client.data.modalities import joined
from fedmed_client.data.nifti import read_nifti, read_nifti_label
from fedmed_client.data.rawcase import Loaded, RawCase, only_names_stop_the_site
from fedmed_client.data.text import printable
from fedmed_client.data.volume import Volume
from fedmed_common.config import Experiment, Site
from fedmed_common.errors import DataError, GeometryError, UnreadableFile

SUFFIXES = {
    "nifti": (".nii.gz", ".nii"),
    "images": (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp"),
}


def paired_cases(site: Site, experiment: Experiment, skipped: list[Skipped]) -> Iterator[RawCase]:
    """The pairs of equal stem; what has no partner goes to ``skipped``.

    Raises:
        DataError: the folder of images or of labels is missing.
    """
    if site.data.labels_from == "table":
        yield from _tabled_cases(site, experiment, skipped)
        return
    images = _by_stem(site, site.data.images, skipped)
    labels = _by_stem(site, site.data.labels, skipped)
    if experiment.data.modalities:
        yield from _of_several(site, experiment, (images, labels), skipped)
        return
    for stem in labels.keys() - images.keys():
        skipped.append(_left_out(labels[stem], "a label without an image of the same name"))
    load = partial(
        load_nifti if site.data.format == "nifti" else load_photograph, site=site, experiment=experiment
    )
    for stem, image in images.items():
        patient = patient_of(stem, site.data.patient_pattern)
        if stem not in labels:
            skipped.append(_left_out(image, "an image without a label of the same name"))
        elif patient is None:
            skipped.append(_left_out(image, "the file name does not match data.patient_pattern"))
        elif _stored_as_wanted(image, site.data.stored_type, skipped):
            yield RawCase(patient=patient, path=image, load=partial(load, image, labels[stem]))


def _of_several(
    site: Site, experiment: Experiment, files: tuple[dict[str, Path], dict[str, Path]], skipped: list[Skipped]
) -> Iterator[RawCase]:
    """The cases that have a label, each of the files whose names begin with the label's and end with a modality's suffix."""
    images, labels = files
    for stem, label in labels.items():
        found = {
            name: images[stem + str(of.suffix)]
            for name, of in site.data.modalities.items()
            if name in experiment.data.modalities and stem + str(of.suffix) in images
        }
        missing = [
            name
            for name, of in site.data.modalities.items()
            if name in experiment.data.modalities and of.required and name not in found
        ]
        patient = patient_of(stem, site.data.patient_pattern)
        if not found:
            skipped.append(
                _left_out(label, "a label without an image of the same name and a modality's suffix")
            )
        elif missing:
            skipped.append(_left_out(label, f"it has no '{missing[0]}', which site.toml requires"))
        elif patient is None:
            skipped.append(_left_out(label, "the file name does not match data.patient_pattern"))
        else:
            ordered = {name: found[name] for name in experiment.data.modalities if name in found}
            load = partial(load_several, ordered, label, site=site, experiment=experiment)
            yield RawCase(patient=patient, path=next(iter(ordered.values())), load=load)
    suffixes = [str(of.suffix) for of in site.data.modalities.values()]
    of_labels = {stem + suffix for stem in labels for suffix in suffixes}
    for stem in images.keys() - of_labels:
        skipped.append(_left_out(images[stem], "no label has its name without a modality's suffix"))


def load_several(images: Mapping[str, Path], label: Path, *, site: Site, experiment: Experiment) -> Loaded:
    """NIfTI images of one case, by modality, and a label map, all on the grid that the label map has.

    Raises:
        GeometryError: the label map has the grid of none of them.
    """
    with only_names_stop_the_site():
        volumes = {name: read_nifti(path) for name, path in images.items()}
        fixed, values = _on_its_grid(volumes, label)
        loads = {name: partial(volumes.__getitem__, name) for name in volumes}
        volume = joined(loads, fixed, experiment, site.data)
    return volume, relabel(values, site, experiment.task.classes, source=label)


def _on_its_grid(volumes: Mapping[str, Volume], label: Path) -> tuple[str, NDArray[np.int64]]:
    """The first modality of whose voxels the label map is, and the label map."""
    for name, volume in volumes.items():
        try:
            return name, read_nifti_label(label, volume)
        except GeometryError:
            continue
    raise GeometryError(f"{label}: has the grid of none of its images ({', '.join(volumes)})")


def _tabled_cases(site: Site, experiment: Experiment, skipped: list[Skipped]) -> Iterator[RawCase]:
    """The images that have a row in the site's table; the others, and rows without an image, go to ``skipped``."""
    suffixes = SUFFIXES[site.data.format]
    table = read_table(site, experiment, lambda _key, cell: stem_of(cell, suffixes))
    images = _by_stem(site, site.data.images, skipped)
    for stem in table.shows.keys() - images.keys():
        skipped.append(
            _left_out(table.path, f"row {table.rows[stem]}: there is no image '{printable(stem)}'")
        )
    load = load_tabled_nifti if site.data.format == "nifti" else load_tabled_photograph
    for stem, image in images.items():
        patient = patient_of(stem, site.data.patient_pattern)
        if stem not in table.shows:
            skipped.append(_left_out(image, f"an image without a row in {table.path}"))
        elif patient is None:
            skipped.append(_left_out(image, "the file name does not match data.patient_pattern"))
        elif _stored_as_wanted(image, site.data.stored_type, skipped):
            part = partial(load, image, experiment=experiment)
            yield RawCase(patient=patient, path=image, load=part, shows=table.shows[stem])


def load_tabled_nifti(image: Path, *, experiment: Experiment) -> Loaded:
    """A NIfTI image without a mask: its label map is empty."""
    volume = read_nifti(image)
    return volume, np.zeros(volume.shape, np.uint8)


def load_tabled_photograph(image: Path, *, experiment: Experiment) -> Loaded:
    """A photograph without a mask."""
    volume = read_image(image, experiment.data.channels)
    return volume, np.zeros(volume.shape, np.uint8)


def load_nifti(image: Path, label: Path, *, site: Site, experiment: Experiment) -> Loaded:
    """A NIfTI image and its label map; the integers in it, as strings, are the site's label names."""
    with only_names_stop_the_site():
        volume = read_nifti(image)
        values = read_nifti_label(label, volume)
    return volume, relabel(values, site, experiment.task.classes, source=label)


def load_photograph(image: Path, label: Path, *, site: Site, experiment: Experiment) -> Loaded:
    """A photograph and its mask. A mask or instance map has the one label name '1', wherever it is above zero."""
    with only_names_stop_the_site():
        volume = read_image(image, experiment.data.channels)
        values = read_mask(label)
        if site.data.image_labels != "values":
            values = semantic(values).astype(np.int64)
    return volume, relabel(values, site, experiment.task.classes, source=label)


def _by_stem(site: Site, subfolder: str, skipped: list[Skipped]) -> dict[str, Path]:
    folder = site.data.root / subfolder
    if not folder.is_dir():
        raise DataError(
            f"{folder} is not a folder: format {site.data.format} pairs '{site.data.images}' with '{site.data.labels}' below "
            f"{site.data.root}\n  fix: correct data.root, data.images or data.labels of site '{site.name}'"
        )
    files: dict[str, list[Path]] = defaultdict(list)
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        suffix = next((end for end in SUFFIXES[site.data.format] if path.name.lower().endswith(end)), None)
        if suffix:
            files[path.name[: -len(suffix)]].append(path)
        elif path.is_file():
            skipped.append(_left_out(path, f"not a file of format {site.data.format}"))
    for paths in files.values():
        if len(paths) > 1:
            skipped.extend(_left_out(path, "several files share this name") for path in paths)
    return {stem: paths[0] for stem, paths in files.items() if len(paths) == 1}


def stem_of(name: str, suffixes: tuple[str, ...]) -> str:
    """A file's name as a table may have it: without folders and ending."""
    name = name.replace("\\", "/").rpartition("/")[2]
    suffix = next((end for end in suffixes if name.lower().endswith(end)), "")
    return name[: len(name) - len(suffix)]


def patient_of(stem: str, pattern: str | None) -> str | None:
    """The patient's key: group 1 of the pattern in the file's stem, or the stem; None where the pattern is not in it."""
    if pattern is None:
        return stem
    match = re.search(pattern, stem)
    return match[1] if match else None


def _stored_as_wanted(image: Path, stored_type: str | None, skipped: list[Skipped]) -> bool:
    """Whether a file's header names the wanted type; the other types are another site's and are not listed."""
    if stored_type is None:
        return True
    try:
        return str(nibabel.load(image).get_data_dtype()) == stored_type
    except Exception as error:  # nibabel lets many kinds through; any of them is this one file's
        skipped.append(
            Skipped(path=image, code=UnreadableFile.code, reason=f"{type(error).__name__}: {error}")
        )
        return False


def _left_out(path: Path, reason: str) -> Skipped:
    return Skipped(path=path, code=DataError.code, reason=reason)
