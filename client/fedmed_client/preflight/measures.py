"""What is measured of one case, as it was read and before anything is resampled."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage

from fedmed_client.data.preprocess import check_pair, finite, reorient
from fedmed_client.data.rawcase import RawCase
from fedmed_client.data.volume import Volume
from fedmed_common.config import Experiment
from fedmed_common.errors import DataError
from fedmed_common.intensities import FOREGROUND_PERCENT, ROBUST_PERCENTILES
from fedmed_common.site_config import UNLABELLED

_PICTURE = 12
"""Side of the picture by which copies are recognised, in voxels."""
_COARSE_VOXELS, _FINE_VOXELS = 4_000_000, 16_000_000
"""The body is found in every n-th voxel, edges in every n-th within a slice, so that there are no more."""
_MARGIN_MM, _LONGEST_SHIFT_MM = 40.0, 30.0
_SMALL_SHARE, _SMALL_VOXELS = 0.02, 64
_SATURATED = 95.0
_PART_OF_BODY = 0.05
_LEAST_HU = -1024.0

Triple = tuple[float, float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassFacts:
    """One class in one case. ``centre``: of its voxels in the box around the body, 0 to 1 along right, anterior, superior;
    ``specks``: small pieces apart from the largest; ``outside``: share of its voxels beyond the body."""

    name: str
    voxels: int
    ml: float
    centre: Triple
    specks: int
    outside: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseFacts:
    """One case. Lengths in mm, along right, anterior, superior.

    ``shows``: the classes that the label map shows, or that the site's table names. ``body_mm``: the box around what is brighter
    than the surroundings. ``levels``: the intensities below which 1, 50 and 99 % of the voxels are. ``digest``: equal for equal
    voxels; ``picture``: alike for copies that were stored otherwise. ``shift_mm``: by how much the labels would have to move to
    lie on edges of the image; ``gain``: how much better they would then lie. ``thumbnail``: PNG."""

    patient: str
    path: Path
    shape: tuple[int, int, int]
    spacing_mm: Triple
    axes: str
    shows: frozenset[str]
    body_mm: Triple
    levels: Triple
    digest: str
    picture: tuple[float, ...]
    labelled: int
    classes: tuple[ClassFacts, ...]
    shift_mm: Triple
    gain: float
    thumbnail: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unread:
    """A case that cannot be used, and why."""

    patient: str
    path: Path
    code: str
    reason: str


def measure(case: RawCase, experiment: Experiment, oriented: bool) -> CaseFacts | Unread:
    """Read a case and measure it. ``oriented``: whether its axes mean directions in the body."""
    try:
        volume, label = case.load()
        check_pair(volume, label, experiment.data)
        return facts_of(case, volume, label, experiment.task.classes, oriented)
    except DataError as error:
        return Unread(patient=case.patient, path=case.path, code=error.code, reason=str(error))
    except MemoryError:
        raise
    except Exception as error:
        reason = f"cannot be looked at ({type(error).__name__}: {error})"
        return Unread(patient=case.patient, path=case.path, code=DataError.code, reason=reason)


def facts_of(
    case: RawCase, volume: Volume, label: NDArray[np.uint8], classes: Sequence[str], oriented: bool
) -> CaseFacts:
    """What is measured of a case that was read."""
    from fedmed_client.preflight.thumbnails import is_picture, thumbnail

    axes = "".join(nibabel.aff2axcodes(volume.affine)) if oriented else ""
    image, spacing = finite(volume.voxels), volume.spacing_mm
    voxel_ml = abs(float(np.linalg.det(volume.affine[:3, :3]))) / 1000
    if oriented:
        image, label, spacing = reorient(image, label, volume.affine)
    grey = image[0] if image.shape[0] == 1 else image.mean(axis=0)
    digest = hashlib.sha256(np.ascontiguousarray(image).data).hexdigest()
    shown = np.where(label == UNLABELLED, np.uint8(0), label)
    strides = _strides(grey.shape)
    coarse = grey[strides]
    body = _body(np.maximum(coarse, _LEAST_HU))
    box = ndimage.find_objects(body.astype(np.uint8))[0]
    steps = [step * part.step for step, part in zip(spacing, strides, strict=True)]
    found = tuple(_classes(shown, strides, body, box, (classes, voxel_ml)))
    shift, gain = _best_shift(grey, shown, spacing)
    named = None if case.shows is None else zip(classes, case.shows, strict=True)
    return CaseFacts(
        patient=case.patient,
        path=case.path,
        shape=(grey.shape[0], grey.shape[1], grey.shape[2]),
        spacing_mm=spacing,
        axes=axes,
        shows=frozenset(one.name for one in found)
        if named is None
        else frozenset(k for k, is_shown in named if is_shown),
        body_mm=_triple((side.stop - side.start) * step for side, step in zip(box, steps, strict=True)),
        levels=_triple(np.percentile(coarse, (1, 50, 99))),
        digest=digest,
        picture=_picture(coarse),
        labelled=sum(one.voxels for one in found),
        classes=found,
        shift_mm=shift,
        gain=gain,
        thumbnail=thumbnail(grey, shown, picture=is_picture(volume) or not oriented),
    )


def _strides(shape: tuple[int, ...]) -> tuple[slice, ...]:
    """Every n-th voxel along each long axis."""
    every = max(1, int(np.ceil((np.prod(shape, dtype=float) / _COARSE_VOXELS) ** (1 / 3))))
    return tuple(slice(None, None, every if side > 4 * every else 1) for side in shape)


def _body(grey: NDArray[np.float32]) -> NDArray[np.bool_]:
    """What is brighter than the surroundings and in one piece, or in a few large ones as two legs; holes of each slice filled."""
    low, high = np.percentile(grey, ROBUST_PERCENTILES)
    parts, count = ndimage.label(grey > low + FOREGROUND_PERCENT / 100 * (high - low))
    if not count:
        return np.ones(grey.shape, np.bool_)
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    large: NDArray[np.bool_] = (sizes >= _PART_OF_BODY * sizes.max())[parts] & (parts > 0)
    return np.stack([ndimage.binary_fill_holes(large[..., z]) for z in range(grey.shape[2])], axis=2)


def _classes(
    label: NDArray[np.uint8],
    strides: tuple[slice, ...],
    body: NDArray[np.bool_],
    box: tuple[slice, ...],
    about: tuple[Sequence[str], float],
) -> Iterable[ClassFacts]:
    classes, voxel_ml = about
    boxes = ndimage.find_objects(label, len(classes))
    coarse = label[strides]
    for number, name in enumerate(classes, start=1):
        if boxes[number - 1] is None:
            continue
        mask = label[boxes[number - 1]] == number
        voxels = int(np.count_nonzero(mask))
        places = np.argwhere(coarse == number)
        if not len(places):
            places = np.array(
                [
                    [
                        (side.start + side.stop) // 2 // part.step
                        for side, part in zip(boxes[number - 1], strides, strict=True)
                    ]
                ]
            )
        starts = np.array([side.start for side in box])
        sizes = np.array([side.stop - side.start for side in box])
        inside = body[tuple(np.minimum(places, np.array(body.shape) - 1).T)]
        yield ClassFacts(
            name=name,
            voxels=voxels,
            ml=voxels * voxel_ml,
            centre=_triple((places.mean(axis=0) - starts + 0.5) / sizes),
            specks=_specks(mask, voxels),
            outside=1.0 - float(inside.mean()),
        )


def _specks(mask: NDArray[np.bool_], voxels: int) -> int:
    parts, count = ndimage.label(mask, np.ones((3, 3, 3)))
    sizes = np.bincount(parts.ravel(), minlength=count + 1)[1:]
    return int(((sizes < _SMALL_SHARE * voxels) & (sizes < _SMALL_VOXELS)).sum())


def _picture(grey: NDArray[np.float32]) -> tuple[float, ...]:
    """A coarse picture with mean 0 and length 1; of an even image zeros."""
    smooth = ndimage.uniform_filter(grey, [max(1, round(side / _PICTURE)) for side in grey.shape])
    index = np.ix_(
        *(np.linspace(0, side - 1, min(side, _PICTURE)).round().astype(int) for side in grey.shape)
    )
    coarse = smooth[index].astype(np.float64).ravel()
    coarse -= coarse.mean()
    length = float(np.linalg.norm(coarse))
    return tuple((coarse / length if length else coarse).round(5).tolist())


def _best_shift(grey: NDArray[np.float32], label: NDArray[np.uint8], spacing: Triple) -> tuple[Triple, float]:
    """The shift of the labels, in mm, at which their outlines lie on the strongest edges of the image, and how much stronger
    those are than where the outlines lie now. All shifts at once, as a correlation by Fourier transforms. Where they get
    stronger right up to the longest shift, there is no place at which they fit."""
    nowhere = (0.0, 0.0, 0.0), 0.0
    if not label.any():
        return nowhere
    box = ndimage.find_objects((label > 0).astype(np.uint8))[0]
    cut = tuple(
        slice(max(0, side.start - round(_MARGIN_MM / step)), side.stop + round(_MARGIN_MM / step))
        for side, step in zip(box, spacing, strict=True)
    )
    grey, label = grey[cut], label[cut]
    stride = max(1, int(np.ceil(np.sqrt(grey.size / _FINE_VOXELS))))
    grey, label = grey[::stride, ::stride], label[::stride, ::stride]
    steps = (spacing[0] * stride, spacing[1] * stride, spacing[2])
    outline = _outline(label).astype(np.float32)
    if not outline.any():
        return nowhere
    reach = [
        int(min(_LONGEST_SHIFT_MM / step, side // 2)) for side, step in zip(grey.shape, steps, strict=True)
    ]
    size = [fft.next_fast_len(side + most, real=True) for side, most in zip(grey.shape, reach, strict=True)]
    spectrum = fft.rfftn(_edges(grey), size) * np.conj(fft.rfftn(outline, size))
    scores = fft.irfftn(spectrum, size) / outline.sum()
    window = scores[np.ix_(*(np.arange(-most, most + 1) for most in reach))]
    best = np.unravel_index(int(window.argmax()), window.shape)
    offset = [int(place) - most for place, most in zip(best, reach, strict=True)]
    if any(most and abs(count) == most for count, most in zip(offset, reach, strict=True)):
        return nowhere
    here, there = float(scores[0, 0, 0]), float(window[best])
    moved = _triple(count * step for count, step in zip(offset, steps, strict=True))
    return moved, there / max(here, 1e-9) - 1


def _edges(grey: NDArray[np.float32]) -> NDArray[np.float32]:
    """How steep the image is, along all axes in voxels, with the steepest held back, for bone outshines all else; mean 0."""
    steep = np.zeros(grey.shape, np.float32)
    for axis, side in enumerate(grey.shape):
        if side > 1:
            steep += np.square(np.gradient(grey, axis=axis))
    np.sqrt(steep, out=steep)
    np.minimum(steep, np.percentile(steep, _SATURATED), out=steep)
    steep -= steep.mean()
    return steep


def _outline(label: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Voxels on either side of a border between two labels, so that neither side is favoured."""
    found = np.zeros(label.shape, np.bool_)
    for axis, side in enumerate(label.shape):
        if side == 1:
            continue
        apart = np.diff(label, axis=axis) != 0
        first = [slice(None)] * label.ndim
        second = list(first)
        first[axis], second[axis] = slice(None, -1), slice(1, None)
        found[tuple(first)] |= apart
        found[tuple(second)] |= apart
    return found


def _triple(values: Iterable[float]) -> Triple:
    x, y, z = (float(value) for value in values)
    return x, y, z
