"""RTSTRUCT: closed planar contours to masks by the even-odd rule at voxel centres.

Contours lie where their points say; references to instances are not needed. Contours of one slice combine by exclusive or, so an
inner contour is a hole and a region inside the hole counts again.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedmed_client.data.grid import LPS_TO_RAS, OFF_SLICE, Bools, Shape
from fedmed_client.data.label_file import code_names, distinct, items, open_label, reading
from fedmed_client.data.volume import Volume
from fedmed_common.errors import GeometryError, LabelError, UnreadableFile

_log = logging.getLogger(__name__)
_CLOSED = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")
_INDEX_DECIMALS = 6


def region_names(path: Path) -> tuple[tuple[str, ...], ...]:
    """All names each region answers to, in the file's order: ROI name, observation label, identification code and its meaning.

    An ROI without a closed contour (an isocentre, a reference point, an empty ROI) is not a region. Raises UnreadableFile, and
    LabelError when no region is left.
    """
    dataset = open_label(path, "RTSTRUCT")
    with reading(path):
        return tuple(_names(dataset, roi) for roi, _ in _regions(dataset, path))


def read_rtstruct(path: Path, volume: Volume, *, wanted: Collection[int] | None = None) -> list[Bools]:
    """One mask ``(X, Y, Z)`` per region, in the order of ``region_names``, on the grid of the volume; its slices are along Z.

    ``wanted``: positions in that order to read; the others come as empty masks that take no memory. Absent: all. A voxel
    belongs to a region when its centre lies inside an odd number of its contours; what lies beside the image in its plane is
    cut off. Raises UnreadableFile, LabelError, and GeometryError when a contour lies on no slice.
    """
    dataset = open_label(path, "RTSTRUCT")
    with reading(path):
        regions = _regions(dataset, path)
        affine = LPS_TO_RAS @ volume.affine
        masks: list[Bools] = []
        for position, (roi, contours) in enumerate(regions):
            if wanted is not None and position not in wanted:
                masks.append(np.broadcast_to(np.False_, volume.shape))
                continue
            name = _names(dataset, roi)[0]
            slices = [_slice_of(contour, affine, volume.shape[2], path, name) for contour in contours]
            in_plane = [_onto_slice(contour, affine, k) for contour, k in zip(contours, slices, strict=True)]
            masks.append(fill(in_plane, slices, volume.shape))
    return masks


def plane_points(path: Path) -> list[NDArray[np.float64]]:
    """The corners ``(points, 3)`` of every closed contour, in millimetres RAS: where the label lies, for `match`."""
    dataset = open_label(path, "RTSTRUCT")
    with reading(path):
        return [
            contour @ LPS_TO_RAS[:3, :3] for _, contours in _regions(dataset, path) for contour in contours
        ]


def fill(contours: Sequence[NDArray[np.float64]], slices: Sequence[int], shape: Shape) -> Bools:
    """The even-odd fill ``(X, Y, Z)`` of polygons ``(points, 2)`` given in voxel indices, each on its slice.

    A centre that lies on an edge belongs to the side of larger x, on a horizontal edge to that of larger y; so polygons that
    share an edge neither overlap nor leave a gap.
    """
    filled = np.zeros(shape, bool)
    if not contours:
        return filled
    corners = np.concatenate(contours)
    first = np.clip([*np.floor(corners.min(axis=0)), min(slices)], 0, shape).astype(int)
    last = np.clip([*np.ceil(corners.max(axis=0)) + 1, max(slices) + 1], 0, shape).astype(int)
    if (first < last).all():
        moved = [np.round(contour - first[:2], _INDEX_DECIMALS) for contour in contours]
        box = tuple(slice(begin, end) for begin, end in zip(first, last, strict=True))
        size_x, size_y, size_z = (last - first).tolist()
        filled[box] = _fill_box(moved, np.asarray(slices) - first[2], (size_x, size_y, size_z))
    return filled


def _fill_box(contours: Sequence[NDArray[np.float64]], slices: NDArray[np.int64], shape: Shape) -> Bools:
    """Toggle parity where an edge crosses a row of voxel centres, then sum along the row."""
    size_x, size_y, size_z = shape
    begin = np.concatenate(contours)
    end = np.concatenate([np.roll(contour, -1, axis=0) for contour in contours])
    z = np.repeat(slices, [len(contour) for contour in contours])
    upward = (begin[:, 1] <= end[:, 1])[:, None]
    low, high = np.where(upward, begin, end), np.where(upward, end, begin)
    first_row = np.clip(np.ceil(low[:, 1]), 0, size_y).astype(int)
    rows = np.clip(np.ceil(high[:, 1]), 0, size_y).astype(int) - first_row
    edge = np.repeat(np.arange(len(rows)), rows)
    row = np.arange(rows.sum()) - np.repeat(np.cumsum(rows) - rows, rows) + first_row[edge]
    slope = (high[edge, 0] - low[edge, 0]) / (high[edge, 1] - low[edge, 1])
    crossing = np.round(low[edge, 0] + (row - low[edge, 1]) * slope, _INDEX_DECIMALS)
    column = np.maximum(np.ceil(crossing), 0).astype(int)
    inside = column < size_x
    at = np.ravel_multi_index((z[edge[inside]], row[inside], column[inside]), (size_z, size_y, size_x))
    parity = np.zeros((size_z, size_y, size_x), np.uint8)
    np.bitwise_xor.at(parity.reshape(-1), at, 1)
    np.bitwise_xor.accumulate(parity, axis=2, out=parity)
    return parity.transpose(2, 1, 0).view(bool)


def _onto_slice(contour: NDArray[np.float64], affine: NDArray[np.float64], k: int) -> NDArray[np.float64]:
    """The foot of the perpendicular from each point ``(points, 3)`` to slice k, as voxel indices ``(points, 2)``."""
    offset = contour - (affine[:3, 3] + k * affine[:3, 2])
    return np.asarray(offset @ np.linalg.pinv(affine[:3, :2]).T, dtype=np.float64)


def _slice_of(
    contour: NDArray[np.float64], affine: NDArray[np.float64], slices: int, path: Path, name: str
) -> int:
    heights = (contour - affine[:3, 3]) @ np.linalg.inv(affine[:3, :3])[2]
    nearest = round(float(heights.mean()))
    off = float(np.abs(heights - nearest).max())
    if off > OFF_SLICE:
        tilted = np.ptp(heights) > OFF_SLICE
        why = (
            "is not parallel to the slices"
            if tilted
            else f"lies {off:.2f} slices away from the nearest slice"
        )
        raise GeometryError(f"{path}: region '{name}': a contour {why}; it was drawn on another series")
    if not 0 <= nearest < slices:
        raise GeometryError(
            f"{path}: region '{name}': a contour lies on slice {nearest}, but the image has slices 0 to {slices - 1}"
        )
    return nearest


def _names(dataset: Any, roi: Any) -> tuple[str, ...]:
    names = [str(roi.get("ROIName") or "")]
    codes = items(roi, "RTROIIdentificationCodeSequence")
    for observation in items(dataset, "RTROIObservationsSequence"):
        if observation.get("ReferencedROINumber") == roi.ROINumber:
            names.append(str(observation.get("ROIObservationLabel") or ""))
            codes += items(observation, "RTROIIdentificationCodeSequence")
    return distinct([*names, *code_names(codes)], str(roi.ROINumber))


def _regions(dataset: Any, path: Path) -> list[tuple[Any, list[NDArray[np.float64]]]]:
    """ROIs that have a closed contour, each with its contours ``(points, 3)`` in millimetres LPS."""
    drawn: dict[Any, list[NDArray[np.float64]]] = {}
    left_out: Counter[str] = Counter()
    for item in items(dataset, "ROIContourSequence"):
        contours = drawn.setdefault(item.get("ReferencedROINumber"), [])
        for contour in items(item, "ContourSequence"):
            kind = str(contour.get("ContourGeometricType") or "without a type")
            points = _points(contour, path) if kind in _CLOSED else np.empty((0, 3))
            if len(points) >= 3:
                contours.append(points)
            else:
                left_out[kind if kind not in _CLOSED else "fewer than three points"] += 1
    for reason, count in left_out.items():
        _log.info("left out %d contours that enclose nothing: %s", count, reason)
    regions = [
        (roi, drawn[roi.get("ROINumber")])
        for roi in items(dataset, "StructureSetROISequence")
        if drawn.get(roi.get("ROINumber"))
    ]
    if not regions:
        raise LabelError(f"{path}: holds no closed contour ({dict(left_out) or 'no contour at all'})")
    return regions


def _points(contour: Any, path: Path) -> NDArray[np.float64]:
    """ContourData as ``(points, 3)``. Parsed from its bytes where they are still raw: pydicom makes an object of each number."""
    element = contour.get_item("ContourData")
    value = element.value if element is not None else None
    if value is None or len(value) == 0:
        return np.empty((0, 3))
    try:
        parts = value.split(b"\\") if isinstance(value, bytes) else value
        numbers = np.array(parts, dtype=np.float64)
        points = numbers.reshape(-1, 3)
    except (TypeError, ValueError) as error:
        raise UnreadableFile(f"{path}: ContourData is not a list of x, y, z ({error})") from None
    if not np.isfinite(points).all():
        raise UnreadableFile(f"{path}: ContourData holds a number that is not finite")
    return points
