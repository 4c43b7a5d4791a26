"""Where the frames of one DICOM file lie in the patient."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedmed_client.data.grid import LPS_TO_RAS, Affine
from fedmed_client.data.label_file import items
from fedmed_common.errors import GeometryError


def frame_affines(dataset: Any, path: Path) -> list[Affine]:
    """Per frame the map of (column, row, 0, 1) to millimetres RAS; the third column is the plane's unit normal.

    A single-frame image has its place at top level, all else in functional groups (PS3.3 C.7.6.16.2). Raises GeometryError
    where a frame has none.
    """
    count = int(dataset.get("NumberOfFrames") or 1)
    listed = len(dataset.get("PerFrameFunctionalGroupsSequence") or ())
    if listed != count and (listed or count > 1):
        raise GeometryError(
            f"{path}: {count} frames, but PerFrameFunctionalGroupsSequence describes {listed}"
        )
    return [_affine(dataset, index, path) for index in range(count)]


def functional_group(dataset: Any, index: int, sequence: str) -> Any:
    """A functional group's item for a frame: its own, else the shared one, else None; a single-frame image is its own group."""
    own = dataset.get("PerFrameFunctionalGroupsSequence")
    for item in (*own[index : index + 1], *items(dataset, "SharedFunctionalGroupsSequence")) if own else ():
        found = items(item, sequence)
        if found:
            return found[0]
    return None if own else dataset


def _affine(dataset: Any, index: int, path: Path) -> Affine:
    position = _numbers(dataset, index, "PlanePositionSequence", "ImagePositionPatient", 3)
    orientation = _numbers(dataset, index, "PlaneOrientationSequence", "ImageOrientationPatient", 6)
    spacing = _numbers(dataset, index, "PixelMeasuresSequence", "PixelSpacing", 2)
    if position is None or orientation is None or spacing is None:
        raise GeometryError(
            f"{path}: frame {index + 1} has no position, orientation or pixel spacing in the patient"
        )
    normal = np.cross(orientation[:3], orientation[3:])
    length = np.linalg.norm(normal)
    if not np.isfinite(position).all() or not length > 0.5 or not (spacing > 0).all():
        raise GeometryError(
            f"{path}: frame {index + 1}: its position, orientation and pixel spacing place no plane"
        )
    affine = np.eye(4)
    affine[:3, 0] = orientation[:3] * spacing[1]
    affine[:3, 1] = orientation[3:] * spacing[0]
    affine[:3, 2] = normal / length
    affine[:3, 3] = position
    return np.asarray(LPS_TO_RAS @ affine, dtype=np.float64)


def _numbers(dataset: Any, index: int, sequence: str, keyword: str, count: int) -> NDArray[np.float64] | None:
    group = functional_group(dataset, index, sequence)
    values = group.get(keyword) if group is not None else None
    if values is None or len(values) != count:
        return None
    return np.array([float(value) for value in values])
