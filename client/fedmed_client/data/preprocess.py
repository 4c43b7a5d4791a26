"""From a case as it was read to what the network sees: axes, crop, voxel size, intensity.

Each step is a function of arrays alone, so training, evaluation and a later prediction prepare an image alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray

from fedmed_client.data.bias import without_bias
from fedmed_client.data.volume import Volume
from fedmed_client.data.wavelets import fused
from fedmed_common.config import Data, Intensity
from fedmed_common.errors import DataError, GeometryError
from fedmed_common.intensities import ROBUST_PERCENTILES, foreground, landmarks, some

Image = NDArray[np.float32]
Label = NDArray[np.uint8]
Spacing = tuple[float, float, float]

OUTLIER_DEVIATIONS = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """``image``: ``(C, X, Y, Z)``, ready for the network; ``label``: ``(X, Y, Z)``; both on one grid along R, A, S."""

    image: Image
    label: Label
    spacing_mm: Spacing


def prepare(volume: Volume, label: Label, data: Data) -> Prepared:
    """Reorient, take the bias out, crop, resample and normalise one case.

    Raises:
        GeometryError: image and label differ in shape, or the affine has no direction for an axis.
        DataError: the channels are not ``data.channels``, or no voxel is a finite number.
    """
    check_pair(volume, label, data)
    missing = missing_modalities(volume, data)
    image, label, spacing = reorient(finite(volume.voxels), label, volume.affine)
    image = without_bias(image, spacing, data)
    if data.crop_to_foreground:
        image, label = crop(image, label, case_foreground(image, missing) | (label > 0))
    if data.spacing_mm is not None:
        image = resample(image, spacing, data.spacing_mm, linear)
        label = resample(label[None], spacing, data.spacing_mm, nearest)[0]
        spacing = data.spacing_mm
    return Prepared(image=normalised(image, missing, data), label=label, spacing_mm=spacing)


def restored(prepared: NDArray[Any], volume: Volume, data: Data) -> NDArray[Any]:
    """What was made of a prepared image without a label, ``(X, Y, Z)``, on the voxels of the volume that it was made of: the way
    back through ``prepare``, each voxel that of the nearest; beyond the crop 0."""
    order, flips = _turns(volume.affine)
    image = finite(volume.voxels).transpose(0, *(axis + 1 for axis in order))[(slice(None), *flips)]
    spacing = _triple(np.linalg.norm(volume.affine[:3, :3], axis=0)[list(order)])
    box = (slice(None),) * 3
    if data.crop_to_foreground:
        image = without_bias(image, spacing, data)
        missing = missing_modalities(volume, data)
        box = _box(case_foreground(image, missing)) or box
    whole = np.zeros(image.shape[1:], prepared.dtype)
    inner = prepared[None]
    if data.spacing_mm is not None:
        for axis, (old, new) in enumerate(zip(spacing, data.spacing_mm, strict=True), start=1):
            count = whole[box].shape[axis - 1]
            if inner.shape[axis] != count or (count > 1 and abs(old - new) > 1e-3 * new):
                places = (np.arange(count) + 0.5) * (old / new) - 0.5
                inner = nearest(inner, axis, np.clip(places, 0, inner.shape[axis] - 1))
    whole[box] = inner[0]
    return np.ascontiguousarray(whole[flips].transpose(np.argsort(order)))


def check_pair(volume: Volume, label: Label, data: Data) -> None:
    """Raises GeometryError or DataError as ``prepare`` does, where image and label do not fit each other or the experiment."""
    if label.shape != volume.shape:
        raise GeometryError(f"the label has {label.shape} voxels, its image {volume.shape}")
    wanted = len(data.modalities) or data.channels
    if volume.voxels.shape[0] != wanted:
        raise DataError(
            f"the image has {volume.voxels.shape[0]} channels, and the experiment asks for {wanted} "
            f"{'modalities' if data.modalities else 'by data.channels'}"
        )


def reorient(image: Image, label: Label, affine: NDArray[np.float64]) -> tuple[Image, Label, Spacing]:
    """Permute and flip axes until they point nearest to right, anterior, superior. The identity changes nothing."""
    order, flips = _turns(affine)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)[list(order)]
    image = image.transpose(0, *(axis + 1 for axis in order))[(slice(None), *flips)]
    return image, label.transpose(order)[flips], _triple(spacing)


def _turns(affine: NDArray[np.float64]) -> tuple[tuple[int, ...], tuple[slice, ...]]:
    """In which order the axes point right, anterior, superior, and which of those have to be flipped."""
    orientation = nibabel.orientations.io_orientation(affine)
    if np.isnan(orientation).any():
        raise GeometryError("the affine is singular: an axis of the image has no direction")
    order = tuple(int(axis) for axis in np.argsort(orientation[:, 0]))
    return order, tuple(slice(None, None, int(orientation[axis, 1])) for axis in order)


def _triple(spacing: NDArray[np.float64]) -> Spacing:
    return float(spacing[0]), float(spacing[1]), float(spacing[2])


def crop(image: Image, label: Label, keep: NDArray[np.bool_]) -> tuple[Image, Label]:
    """Cut to the box around ``keep``, ``(X, Y, Z)``."""
    box = _box(keep)
    return (image, label) if box is None else (image[(slice(None), *box)], label[box])


def missing_modalities(volume: Volume, data: Data) -> tuple[bool, ...]:
    """Which of the experiment's modalities a case lacks: their channels have no number."""
    return tuple(bool(np.isnan(channel).all()) for channel in volume.voxels) if data.modalities else ()


def case_foreground(image: Image, missing: Sequence[bool]) -> NDArray[np.bool_]:
    """:func:`foreground`; of several modalities, where any is brighter than its own surroundings, for their units differ."""
    if not missing:
        return foreground(image)
    masks = [foreground(image[at : at + 1]) for at, lacks in enumerate(missing) if not lacks]
    return np.asarray(np.any(masks, axis=0))


def normalised(image: Image, missing: Sequence[bool], data: Data) -> Image:
    """Network input of the whole case: each modality by its own settings, zeros where it is missing, then fused."""
    if not data.modalities:
        return normalise(image, data.intensity)
    channels = [
        np.zeros_like(image[at]) if lacks else normalise(image[at : at + 1], data.intensity_of(name))[0]
        for at, (name, lacks) in enumerate(zip(data.modalities, missing, strict=True))
    ]
    if data.fusion.kind == "channels":
        return np.stack(channels)
    return fused(
        [channel for channel, lacks in zip(channels, missing, strict=True) if not lacks], data.fusion
    )[None]


def _box(keep: NDArray[np.bool_]) -> tuple[slice, slice, slice] | None:
    """The smallest that holds all of it; None where there is nothing."""
    if not keep.any():
        return None
    x, y, z = (_extent(np.any(keep, axis=others)) for others in ((1, 2), (0, 2), (0, 1)))
    return x, y, z


def resample(
    array: NDArray[Any],
    spacing: Spacing,
    target: Spacing,
    along: Callable[[NDArray[Any], int, NDArray[np.float64]], NDArray[Any]],
) -> NDArray[Any]:
    """``(C, X, Y, Z)`` on voxels of ``target`` mm over the same extent, axis by axis. A single slice stays single."""
    for axis, (old, new) in enumerate(zip(spacing, target, strict=True), start=1):
        count = array.shape[axis]
        if count == 1 or abs(old - new) <= 1e-3 * new:
            continue
        places = (np.arange(max(1, round(count * old / new))) + 0.5) * (new / old) - 0.5
        array = along(array, axis, np.clip(places, 0, count - 1))
    return array


def linear(array: NDArray[Any], axis: int, places: NDArray[np.float64]) -> NDArray[Any]:
    """Values between neighbours along one axis, at fractional indices within it."""
    below = np.minimum(places.astype(np.intp), array.shape[axis] - 2)
    share = (places - below).astype(np.float32).reshape([-1 if a == axis else 1 for a in range(array.ndim)])
    first, second = array.take(below, axis), array.take(below + 1, axis)
    return np.asarray(first + share * (second - first))


def nearest(array: NDArray[Any], axis: int, places: NDArray[np.float64]) -> NDArray[Any]:
    """The nearest value along one axis, at fractional indices within it."""
    return array.take(np.rint(places).astype(np.intp), axis)


def normalise(image: Image, intensity: Intensity) -> Image:
    """Network input as ``Intensity`` describes; z-scores are held within 10 deviations, the other kinds within 0..1."""
    if intensity.kind == "zscore":
        return _zscore(image)
    if intensity.landmarks is not None:
        return _on_standard_scale(image, intensity.landmarks)
    if intensity.kind == "scale":
        low, high = 0.0, 255.0
    elif intensity.kind == "window":
        low, high = intensity.low, intensity.high
    else:
        low, high = (float(value) for value in np.percentile(some(image), (intensity.low, intensity.high)))
    return np.asarray(np.clip((image - low) / max(high - low, 1e-6), 0, 1), np.float32)


def _on_standard_scale(image: Image, scale: Sequence[Sequence[float]]) -> Image:
    """Each channel piecewise linear from its own landmarks to those of the scale (Nyul and Udupa 1999)."""
    result = np.empty_like(image, dtype=np.float32)
    for channel, (own, standard) in enumerate(zip(landmarks(image), scale, strict=True)):
        rising = own + np.arange(len(own)) * np.spacing(np.abs(own).max() + 1)
        result[channel] = np.interp(image[channel], rising, (0.0, *standard, 1.0))
    return result


def _zscore(image: Image) -> Image:
    mask = foreground(image)
    result = np.empty_like(image, dtype=np.float32)
    for channel, values in enumerate(image):
        inside = values[mask] if mask.any() else values.ravel()
        inside = np.clip(inside, *np.percentile(some(inside), ROBUST_PERCENTILES)).astype(np.float64)
        deviations = (values - float(inside.mean())) / max(float(inside.std()), 1e-6)
        result[channel] = np.clip(deviations, -OUTLIER_DEVIATIONS, OUTLIER_DEVIATIONS)
    return result


def finite(voxels: NDArray[Any]) -> Image:
    """Float32, with what is no number as dark as the darkest. Raises DataError where no voxel is one."""
    image = voxels.astype(np.float32, copy=False)
    finite = np.isfinite(image)
    if finite.all():
        return image
    if not finite.any():
        raise DataError("no voxel of the image is a finite number")
    return np.where(finite, image, image[finite].min())


def _extent(hits: NDArray[Any]) -> slice:
    places = np.flatnonzero(hits)
    return slice(int(places[0]), int(places[-1]) + 1)
