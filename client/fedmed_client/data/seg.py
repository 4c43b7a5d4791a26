"""DICOM SEG: binary, fractional and label map, placed on an image's grid by plane position and orientation alone.

Frame order and references to instances are not trusted: a frame lies where its functional groups say (PS3.3 C.7.6.16.2).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedmed_client.data.frame_place import frame_affines, functional_group
from fedmed_client.data.grid import (
    OFF_SLICE,
    Affine,
    Bools,
    Shape,
    align,
    boxes_meet,
    merge,
    overlap,
    resample,
)
from fedmed_client.data.label_file import code_names, distinct, items, open_label, reading
from fedmed_client.data.seg_frames import decode_frames
from fedmed_client.data.volume import Volume
from fedmed_common.errors import GeometryError, LabelError, UnreadableFile

_BACKGROUND_CODE = ("DCM", "125040")
_KINDS = ("BINARY", "FRACTIONAL", "LABELMAP")


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame's segment number (None in a label map) and place: ``affine`` takes (column, row, 0, 1) to millimetres RAS.

    Its third column is the unit normal of the plane.
    """

    index: int
    segment: int | None
    affine: Affine


def segment_names(path: Path) -> tuple[tuple[str, ...], ...]:
    """All names each segment answers to, in the file's order: its label, the property type's code and its meaning.

    A segment that has none of these answers to its number. The background of a label map is not listed. Raises
    UnreadableFile, and LabelError when nothing is described.
    """
    dataset = open_label(path, "SEG", pixels=False)
    with reading(path):
        return tuple(_names(segment) for segment in _segments(dataset, path))


def read_seg(
    path: Path, volume: Volume, *, wanted: Collection[int] | None = None, threshold: float = 0.5
) -> list[Bools]:
    """One mask ``(X, Y, Z)`` per segment, in the order of ``segment_names``, on the grid of the volume.

    ``wanted``: positions in that order to read; the others come as empty masks that take no memory. Absent: all.
    ``threshold``: a fractional voxel counts from this share of its maximum. A SEG on another grid than the image's is resampled
    to the nearest voxel. Raises UnreadableFile, DecoderMissing, LabelError, and GeometryError when it does not lie on the image.
    """
    dataset = open_label(path, "SEG")
    with reading(path):
        numbers = [int(segment.SegmentNumber) for segment in _segments(dataset, path)]
        chosen = range(len(numbers)) if wanted is None else wanted
        masks = [
            np.zeros(volume.shape, bool) if k in chosen else np.broadcast_to(np.False_, volume.shape)
            for k in range(len(numbers))
        ]
        targets = {number: masks[k] for k, number in enumerate(numbers) if k in chosen}
        source = _Source(path, dataset, threshold, _background_numbers(dataset))
        frames = [
            frame for frame in _frames(dataset, path) if frame.segment is None or frame.segment in targets
        ]
        to_index = np.asarray(np.linalg.inv(volume.affine), dtype=np.float64)
        if not _merge_planes(source, frames, to_index, targets):
            _resample_stack(source, frames, to_index, targets, volume.shape)
        return masks


def plane_points(path: Path) -> list[NDArray[np.float64]]:
    """Nine pixel centres ``(9, 3)`` of every frame, from edge to edge, in millimetres RAS: where the label lies, for `match`."""
    dataset = open_label(path, "SEG", pixels=False)
    with reading(path):
        column, row = np.meshgrid(np.linspace(0, dataset.Columns - 1, 3), np.linspace(0, dataset.Rows - 1, 3))
        pixels = np.stack([column.ravel(), row.ravel(), np.zeros(9), np.ones(9)])
        return [(affine @ pixels)[:3].T for affine in frame_affines(dataset, path)]


@dataclass(frozen=True, slots=True)
class _Source:
    """What turns stored values into masks."""

    path: Path
    dataset: Any
    threshold: float
    background: frozenset[int]

    @property
    def kind(self) -> str:
        return str(self.dataset.get("SegmentationType", "")).upper()

    def masks(
        self, frame: Frame, values_rows_columns: NDArray[Any], targets: Collection[int]
    ) -> dict[int, Bools]:
        """Masks ``(columns, rows, 1)`` by segment number, for those asked for that occur in the frame."""
        values = values_rows_columns.T[:, :, None]
        if frame.segment is None:
            present = set(np.flatnonzero(np.bincount(values.ravel())).tolist()) - self.background
            self._check_described(present)
            return {number: values == number for number in present if number in targets}
        if self.kind == "FRACTIONAL":
            return {frame.segment: values >= self.threshold * float(self.dataset.MaximumFractionalValue)}
        return {frame.segment: values > 0}

    def _check_described(self, present: set[int]) -> None:
        unknown = present - {int(segment.SegmentNumber) for segment in items(self.dataset, "SegmentSequence")}
        if unknown:
            raise LabelError(
                f"{self.path}: SegmentSequence does not describe the values {sorted(unknown)} that occur in the pixels"
            )


def _merge_planes(
    source: _Source, frames: Sequence[Frame], to_index: Affine, targets: dict[int, Bools]
) -> bool:
    """Set each frame into the slice it lies on; False, with nothing set, where a frame lies between or across slices."""
    shape = (int(source.dataset.Columns), int(source.dataset.Rows), 1)
    placed = [align(_plane_map(to_index @ frame.affine), shape, OFF_SLICE) for frame in frames]
    if not targets or not frames:
        return True
    target = next(iter(targets.values())).shape
    alignments = [alignment for alignment in placed if alignment is not None]
    if len(alignments) < len(placed):
        return False
    inside = [
        (frame, alignment)
        for frame, alignment in zip(frames, alignments, strict=True)
        if overlap(alignment, shape, (target[0], target[1], target[2]))
    ]
    if not inside:
        raise GeometryError(f"{source.path}: none of its {len(frames)} frames lies on the image")
    decoded = decode_frames(source.dataset, [frame.index for frame, _ in inside], source.path)
    for (frame, alignment), values in zip(inside, decoded, strict=True):
        for number, mask in source.masks(frame, values, targets.keys()).items():
            merge(mask, alignment, targets[number])
    return True


def _plane_map(frame_to_index: Affine) -> Affine:
    """Make the third column the voxel axis that the plane does not span: a single plane has no thickness to fit."""
    spanned = np.abs(frame_to_index[:3, :2]).argmax(axis=0)
    free = [axis for axis in range(3) if axis not in spanned]
    changed = frame_to_index.copy()
    changed[:3, 2] = np.eye(3)[free[0]]
    return changed


def _resample_stack(
    source: _Source, frames: Sequence[Frame], to_index: Affine, targets: dict[int, Bools], shape: Shape
) -> None:
    affine, planes = _stack(source, frames)
    size = (int(source.dataset.Columns), int(source.dataset.Rows), max(planes) + 1)
    to_target = to_index @ affine
    if not boxes_meet(to_target, size, shape):
        raise GeometryError(f"{source.path}: its {len(frames)} frames lie outside the image")
    stacks = {number: np.zeros(size, bool) for number in targets}
    decoded = decode_frames(source.dataset, [frame.index for frame in frames], source.path)
    for frame, plane, values in zip(frames, planes, decoded, strict=True):
        for number, mask in source.masks(frame, values, targets.keys()).items():
            stacks[number][:, :, plane] |= mask[:, :, 0]
    for number, stack in stacks.items():
        resample(stack, to_target, targets[number])


def _stack(source: _Source, frames: Sequence[Frame]) -> tuple[Affine, list[int]]:
    """The affine of the evenly spaced planes that the frames lie on, and each frame's plane."""
    base = frames[0].affine
    if any(np.abs(frame.affine[:3, :3] - base[:3, :3]).max() > 1e-3 for frame in frames):
        raise GeometryError(
            f"{source.path}: its frames differ in orientation or spacing and fit no single grid"
        )
    normal = base[:3, 2]
    origins = np.array([frame.affine[:3, 3] for frame in frames])
    along = origins @ normal
    first, last = origins[along.argmin()], origins[along.argmax()]
    heights = along - along.min()
    step_mm = _plane_distance(source, heights)
    direction = (last - first) / heights.max() if heights.max() > 0 else normal
    planes = np.rint(heights / step_mm).astype(int)
    drift = np.abs(origins - first - planes[:, None] * step_mm * direction).max()
    if drift > OFF_SLICE * step_mm:
        raise GeometryError(
            f"{source.path}: its planes are not evenly spaced (one lies {drift:.3g} mm off) and not on the image's slices"
        )
    affine = base.copy()
    affine[:3, 2], affine[:3, 3] = direction * step_mm, first
    return affine, [int(plane) for plane in planes]


def _plane_distance(source: _Source, heights_mm: NDArray[np.float64]) -> float:
    """The declared distance of planes where the positions fit it, else the least one that occurs."""
    measures = functional_group(source.dataset, 0, "PixelMeasuresSequence")
    declared = float(
        (measures and (measures.get("SpacingBetweenSlices") or measures.get("SliceThickness"))) or 0.0
    )
    gaps = np.diff(np.unique(np.round(heights_mm, 3)))
    if not gaps.size:
        return declared or 1.0
    steps = heights_mm / declared if declared else heights_mm + 0.5
    return declared if np.abs(steps - np.rint(steps)).max() <= OFF_SLICE else float(gaps.min())


def _names(segment: Any) -> tuple[str, ...]:
    names = [
        str(segment.get("SegmentLabel") or ""),
        *code_names(items(segment, "SegmentedPropertyTypeCodeSequence")),
    ]
    return distinct(names, str(segment.SegmentNumber))


def _segments(dataset: Any, path: Path) -> list[Any]:
    kind = str(dataset.get("SegmentationType", "")).upper()
    if kind not in _KINDS:
        raise UnreadableFile(f"{path}: SegmentationType is '{kind}', expected one of {', '.join(_KINDS)}")
    described = [
        segment for segment in items(dataset, "SegmentSequence") if segment.get("SegmentNumber") is not None
    ]
    background = _background_numbers(dataset)
    kept = [
        segment for segment in described if kind != "LABELMAP" or int(segment.SegmentNumber) not in background
    ]
    if not kept:
        raise LabelError(f"{path}: SegmentSequence describes no segment")
    return kept


def _background_numbers(dataset: Any) -> frozenset[int]:
    """Values of a label map that stand for no segment: padding, segments coded as background, and 0 unless described."""
    segments = items(dataset, "SegmentSequence")
    coded = {int(segment.SegmentNumber) for segment in segments if _is_background(segment)}
    padding = dataset.get("PixelPaddingValue")
    zero = {0} - {
        int(segment.get("SegmentNumber") or 0)
        for segment in segments
        if segment.get("SegmentNumber") is not None
    }
    return frozenset(coded | zero | ({int(padding)} if padding is not None else set()))


def _is_background(segment: Any) -> bool:
    codes = items(segment, "SegmentedPropertyTypeCodeSequence")
    return any(
        (code.get("CodingSchemeDesignator"), code.get("CodeValue")) == _BACKGROUND_CODE for code in codes
    )


def _frames(dataset: Any, path: Path) -> list[Frame]:
    labelmap = str(dataset.SegmentationType).upper() == "LABELMAP"
    return [
        Frame(index, None if labelmap else _segment_of(dataset, index, path), affine)
        for index, affine in enumerate(frame_affines(dataset, path))
    ]


def _segment_of(dataset: Any, index: int, path: Path) -> int:
    group = functional_group(dataset, index, "SegmentIdentificationSequence")
    number = group and group.get("ReferencedSegmentNumber")
    if number is None:
        raise LabelError(f"{path}: frame {index + 1} does not say which segment it shows")
    return int(number)
