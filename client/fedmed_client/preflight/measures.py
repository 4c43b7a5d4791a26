"""What is measured of one case, as it was read and before anything is resampled."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from fedmed_client.data.preprocess import FOREGROUND_PERCENT, ROBUST_PERCENTILES, finite, reorient
from fedmed_client.data.rawcase import RawCase
from fedmed_client.data.volume import Volume
from fedmed_common.errors import DataError
from fedmed_common.site_config import UNLABELLED

_PICTURE = 12
"""Side of the picture by which copies are recognised, in voxels."""
_MARGIN_MM = 40.0
_MOST_VOXELS = 24_000_000
_SMALL_SHARE, _SMALL_VOXELS = 0.02, 64
_SATURATED = 95.0
_LONGEST_SHIFT_MM = 30.0

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

    ``body_mm``: the box around what is brighter than the surroundings. ``levels``: the intensities below which 1, 50 and 99 % of
    the voxels are. ``digest``: equal for equal voxels; ``picture``: alike for copies that were stored otherwise. ``shift_mm``:
    by how much the labels would have to move to lie on edges of the image; ``gain``: how much better they would then lie."""

    patient: str
    path: Path
    shape: tuple[int, int, int]
    spacing_mm: Triple
    axes: str
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
    """A case that cannot be read, and why."""

    patient: str
    path: Path
    code: str
    reason: str


def measure(case: RawCase, classes: Sequence[str], oriented: bool) -> CaseFacts | Unread:
    """Read a case and measure it. ``oriented``: whether its axes mean directions in the body."""
    try:
        volume, label = case.load()
        return facts_of(case, volume, label, classes, oriented)
    except DataError as error:
        return Unread(patient=case.patient, path=case.path, code=error.code, reason=str(error))


def facts_of(
    case: RawCase, volume: Volume, label: NDArray[np.uint8], classes: Sequence[str], oriented: bool
) -> CaseFacts:
    """What is measured of a case that was read."""
    from fedmed_client.preflight.thumbnails import thumbnail

    axes = "".join(nibabel.aff2axcodes(volume.affine)) if oriented else ""
    image, label, spacing = (
        reorient(finite(volume.voxels), label, volume.affine)
        if oriented
        else (finite(volume.voxels), label, volume.spacing_mm)
    )
    grey = image.mean(axis=0)
    body = _body(grey)
    box = ndimage.find_objects(body.astype(np.uint8))[0]
    shown = np.where(label == UNLABELLED, 0, label)
    shift, gain = _best_shift(grey, shown, spacing)
    return CaseFacts(
        patient=case.patient,
        path=case.path,
        shape=(grey.shape[0], grey.shape[1], grey.shape[2]),
        spacing_mm=spacing,
        axes=axes,
        body_mm=_triple((side.stop - side.start) * step for side, step in zip(box, spacing, strict=True)),
        levels=_triple(np.percentile(grey, (1, 50, 99))),
        digest=hashlib.sha256(np.ascontiguousarray(image).tobytes()).hexdigest(),
        picture=_picture(grey),
        labelled=int(np.count_nonzero(shown)),
        classes=tuple(
            _class_facts(name, shown == number, body, box, spacing)
            for number, name in enumerate(classes, start=1)
            if (shown == number).any()
        ),
        shift_mm=shift,
        gain=gain,
        thumbnail=thumbnail(grey, shown),
    )


def _body(grey: NDArray[np.float32]) -> NDArray[np.bool_]:
    """The largest connected part that is brighter than the surroundings, holes of each slice filled."""
    low, high = np.percentile(grey, ROBUST_PERCENTILES)
    bright = grey > low + FOREGROUND_PERCENT / 100 * (high - low)
    parts, count = ndimage.label(bright)
    if not count:
        return np.ones(grey.shape, np.bool_)
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    largest: NDArray[np.bool_] = parts == int(sizes.argmax())
    return np.stack([ndimage.binary_fill_holes(largest[..., z]) for z in range(grey.shape[2])], axis=2)


def _class_facts(
    name: str, mask: NDArray[np.bool_], body: NDArray[np.bool_], box: tuple[slice, ...], spacing: Triple
) -> ClassFacts:
    voxels = int(mask.sum())
    centre = [
        (place - side.start + 0.5) / (side.stop - side.start)
        for place, side in zip(ndimage.center_of_mass(mask), box, strict=True)
    ]
    parts, count = ndimage.label(mask, np.ones((3, 3, 3)))
    sizes = np.bincount(parts.ravel(), minlength=count + 1)[1:]
    small = int(((sizes < _SMALL_SHARE * voxels) & (sizes < _SMALL_VOXELS)).sum())
    return ClassFacts(
        name=name,
        voxels=voxels,
        ml=voxels * float(np.prod(spacing)) / 1000,
        centre=_triple(centre),
        specks=small,
        outside=float((mask & ~body).sum()) / voxels,
    )


def _picture(grey: NDArray[np.float32]) -> tuple[float, ...]:
    """A coarse picture with mean 0 and length 1; of an even image zeros."""
    zoom = [min(1.0, _PICTURE / side) for side in grey.shape]
    smooth = ndimage.uniform_filter(grey, [max(1, round(1 / part)) for part in zoom])
    index = np.ix_(
        *(np.linspace(0, side - 1, min(side, _PICTURE)).round().astype(int) for side in grey.shape)
    )
    coarse = smooth[index].astype(np.float64).ravel()
    coarse -= coarse.mean()
    length = float(np.linalg.norm(coarse))
    return tuple((coarse / length if length else coarse).round(5).tolist())


def _best_shift(grey: NDArray[np.float32], label: NDArray[np.uint8], spacing: Triple) -> tuple[Triple, float]:
    """The shift of the labels, in mm, at which their outlines lie on the strongest edges of the image, and how much stronger
    those are than where the outlines lie now. All shifts at once, as a correlation by Fourier transforms."""
    if not label.any():
        return (0.0, 0.0, 0.0), 0.0
    box = ndimage.find_objects((label > 0).astype(np.uint8))[0]
    cut = tuple(
        slice(max(0, side.start - round(_MARGIN_MM / step)), side.stop + round(_MARGIN_MM / step))
        for side, step in zip(box, spacing, strict=True)
    )
    grey, label = grey[cut], label[cut]
    stride = max(1, int(np.ceil(np.sqrt(grey.size / _MOST_VOXELS))))
    grey, label = grey[::stride, ::stride], label[::stride, ::stride]
    steps = (spacing[0] * stride, spacing[1] * stride, spacing[2])
    edges = _edges(grey)
    outline = _outline(label).astype(np.float32)
    size = [
        side + min(side, int(_LONGEST_SHIFT_MM / step)) for side, step in zip(grey.shape, steps, strict=True)
    ]
    scores = (
        np.fft.irfftn(np.fft.rfftn(edges, size) * np.conj(np.fft.rfftn(outline, size)), size) / outline.sum()
    )
    reach = [
        int(min(_LONGEST_SHIFT_MM / step, side // 2)) for side, step in zip(grey.shape, steps, strict=True)
    ]
    window = scores[np.ix_(*(np.arange(-most, most + 1) for most in reach))]
    best = np.unravel_index(int(window.argmax()), window.shape)
    offset = [int(place) - most for place, most in zip(best, reach, strict=True)]
    here, there = float(scores[0, 0, 0]), float(window[best])
    moved = _triple(count * step for count, step in zip(offset, steps, strict=True))
    return moved, there / max(here, 1e-9) - 1


def _edges(grey: NDArray[np.float32]) -> NDArray[np.float32]:
    """How steep the image is, along all axes in voxels, with the steepest held back, for bone outshines all else; mean 0."""
    steep = np.zeros(grey.shape, np.float32)
    for axis, side in enumerate(grey.shape):
        if side > 1:
            steep += np.square(np.gradient(grey, axis=axis))
    clipped = np.minimum(np.sqrt(steep), np.percentile(np.sqrt(steep), _SATURATED)).astype(np.float32)
    return np.asarray(clipped - clipped.mean(), np.float32)


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


def _triple(values: object) -> Triple:
    x, y, z = (float(value) for value in values)  # type: ignore[attr-defined]
    return x, y, z
