"""What a classifier sees of a case: the whole image at the size of ``data.patch``, and the classes that it shows.

Beside the image lies, in place of a label map, uint8 ``(K, 1, N)``: 1 where sample n shows class k. In 3D, and of a photograph, N
is 1. For a 2D network on a volume it is the number of slices, which keep their number and are resized within their plane.
"""

from __future__ import annotations

import math

import numpy as np

from fedmed_client.data.bias import without_bias
from fedmed_client.data.preprocess import (
    Image,
    Label,
    Prepared,
    case_foreground,
    check_pair,
    crop,
    finite,
    linear,
    missing_modalities,
    nearest,
    normalised,
    reorient,
    resample,
)
from fedmed_client.data.volume import Volume
from fedmed_common.config import Data, Task
from fedmed_common.errors import DataError

Shows = tuple[bool, ...]


def prepare_whole(
    volume: Volume, label: Label, shows: Shows | None, data: Data, task: Task
) -> tuple[Prepared, Shows]:
    """Reorient, crop, resample, normalise and resize one case; and which classes it shows.

    ``shows``: what a table says; None: what the label map shows. Only the image decides where it is cropped.

    Raises:
        GeometryError, DataError: as ``preprocess.prepare``.
        DataError: with single labels, the case shows none or several; a volume is to be cut into slices and has no masks.
    """
    check_pair(volume, label, data)
    missing = missing_modalities(volume, data)
    image, label, spacing = reorient(finite(volume.voxels), label, volume.affine)
    present = shows if shows is not None else _shown(label, len(task.classes))
    _check(present, image, task, masks=shows is None)
    image = without_bias(image, spacing, data)
    if data.crop_to_foreground:
        image, label = crop(image, label, case_foreground(image, missing))
    samples_K1N = _samples(label, present, task, by_slice=task.dimensions == 2 and image.shape[3] > 1)
    if data.spacing_mm is not None:
        image = resample(image, spacing, data.spacing_mm, linear)
        if samples_K1N.shape[2] > 1:
            along_z = (1.0, 1.0, spacing[2]), (1.0, 1.0, data.spacing_mm[2])
            samples_K1N = resample(samples_K1N[None], *along_z, nearest)[0]
        spacing = data.spacing_mm
    image = normalised(image, missing, data)
    size = data.patch if task.dimensions == 3 else (*data.patch, image.shape[3])
    resized = resize(image, (size[0], size[1], size[2]))
    x, y, z = (
        mm * old / new for mm, old, new in zip(spacing, image.shape[1:], resized.shape[1:], strict=True)
    )
    return Prepared(image=resized, label=samples_K1N, spacing_mm=(x, y, z)), present


def resize(image: Image, shape: tuple[int, int, int]) -> Image:
    """``(C, X, Y, Z)`` over the same extent with another number of voxels, linear along each axis.

    Where an axis shrinks, each new voxel is the mean of as many places as it has old ones, so that a small finding between
    two new voxels is not lost.
    """
    for axis, (old, new) in enumerate(zip(image.shape[1:], shape, strict=True), start=1):
        if old == new:
            continue
        if old == 1:
            image = np.repeat(image, new, axis=axis)
            continue
        together = math.ceil(old / new) if old > new else 1
        places = (np.arange(new * together) + 0.5) * (old / (new * together)) - 0.5
        fine = linear(image, axis, np.clip(places, 0, old - 1))
        image = fine.reshape(*fine.shape[:axis], new, together, *fine.shape[axis + 1 :]).mean(axis=axis + 1)
    return np.asarray(image, np.float32)


def _shown(label: Label, classes: int) -> Shows:
    counts = np.bincount(label.ravel(), minlength=classes + 1)
    return tuple(bool(count) for count in counts[1 : classes + 1])


def _check(present: Shows, image: Image, task: Task, *, masks: bool) -> None:
    slices = image.shape[3] if task.dimensions == 2 else 1
    if slices > 1 and not masks:
        raise DataError(
            f"has {slices} slices, and a table does not say which of them show a class\n"
            "  fix: task.dimensions = 3, or data.labels_from = 'masks'"
        )
    if task.labels == "multi":
        return
    if slices > 1:
        raise DataError(
            f"has {slices} slices, of which each would have to show exactly one class, as task.labels = 'single' says\n"
            "  fix: task.dimensions = 3, or task.labels = 'multi'"
        )
    if sum(present) != 1:
        named = ", ".join(name for name, shown in zip(task.classes, present, strict=True) if shown)
        raise DataError(f"shows {named or 'none of the classes'}; task.labels = 'single' needs exactly one")


def _samples(label: Label, present: Shows, task: Task, *, by_slice: bool) -> Label:
    if not by_slice:
        return np.array(present, np.uint8).reshape(-1, 1, 1)
    values = range(1, len(task.classes) + 1)
    return np.stack([(label == klass).any(axis=(0, 1)) for klass in values]).astype(np.uint8)[:, None]
