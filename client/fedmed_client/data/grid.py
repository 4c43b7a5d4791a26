"""Bring a label onto the voxel grid of its image: by flips and transposition where the grids agree, else by the nearest voxel."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Shape: TypeAlias = tuple[int, int, int]
Bools: TypeAlias = NDArray[np.bool_]
Affine: TypeAlias = NDArray[np.float64]

SAME_GRID = 0.1
"""Two grids agree when no corner of one lies further than this from a voxel centre of the other, in voxels."""
OFF_SLICE = 0.2
"""A label's plane lies on a slice when it is no further away than this share of the slices' distance."""

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""DICOM's patient axes to those of NIfTI; its own inverse."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Alignment:
    """How an array lies on another's grid.

    ``axes[i]``: the source axis that runs along target axis i. ``flips[i]``: whether it runs the other way. ``start``:
    target index of the first voxel, which may lie outside the target.
    """

    axes: tuple[int, int, int]
    flips: tuple[bool, bool, bool]
    start: Shape

    def oriented(self, source: NDArray[Any]) -> NDArray[Any]:
        """A view of the source with the target's axes."""
        steps = tuple(slice(None, None, -1 if flip else 1) for flip in self.flips)
        return source.transpose(self.axes)[steps]


def align(source_to_target: Affine, shape: Shape, tolerance: float = SAME_GRID) -> Alignment | None:
    """Find the transposition, flips and whole-voxel shift that an index map ``(4, 4)`` stands for; None where it is none.

    ``tolerance``: how far a corner may lie from where that puts it, in target voxels.
    """
    matrix = source_to_target[:3, :3]
    rows = np.abs(matrix).argmax(axis=0)
    if sorted(rows.tolist()) != [0, 1, 2]:
        return None
    rounded = np.eye(4)
    rounded[:3, :3] = 0.0
    rounded[rows, range(3)] = np.sign(matrix[rows, range(3)])
    rounded[:3, 3] = np.rint(source_to_target[:3, 3])
    corners = _corners(shape)
    exact, whole = source_to_target @ corners, rounded @ corners
    if np.abs(exact - whole).max() > tolerance:
        return None
    axes = [rows.tolist().index(axis) for axis in range(3)]
    start = whole[:3].min(axis=1).astype(int)
    flips = [bool(matrix[axis, axes[axis]] < 0) for axis in range(3)]
    return Alignment(
        axes=(axes[0], axes[1], axes[2]),
        flips=(flips[0], flips[1], flips[2]),
        start=(int(start[0]), int(start[1]), int(start[2])),
    )


def overlap(alignment: Alignment, shape: Shape, target: Shape) -> bool:
    """Whether a source of this shape has a voxel inside the target."""
    size = [shape[axis] for axis in alignment.axes]
    return all(
        begin < stop and begin + length > 0
        for begin, length, stop in zip(alignment.start, size, target, strict=True)
    )


def merge(source: Bools, alignment: Alignment, target: Bools) -> None:
    """Set the target's voxels where the source is set; what lies outside the target is dropped."""
    placed = alignment.oriented(source)
    inside, taken = [], []
    for begin, length, stop in zip(alignment.start, placed.shape, target.shape, strict=True):
        first, last = max(begin, 0), min(begin + length, stop)
        if first >= last:
            return
        inside.append(slice(first, last))
        taken.append(slice(first - begin, last - begin))
    target[tuple(inside)] |= placed[tuple(taken)]


def resample(source: Bools, source_to_target: Affine, target: Bools) -> None:
    """Set each target voxel whose centre has a set voxel of the source as its nearest; works through one z-plane at a time."""
    set_indices = [np.flatnonzero(source.any(axis=others)) for others in ((1, 2), (0, 2), (0, 1))]
    if not set_indices[0].size:
        return
    edges = [(indices[0] - 0.5, indices[-1] + 0.5) for indices in set_indices]
    box = (source_to_target @ np.array([[*corner, 1.0] for corner in product(*edges)]).T)[:3]
    first = np.clip(np.floor(box.min(axis=1)), 0, target.shape).astype(int)
    last = np.clip(np.ceil(box.max(axis=1)) + 1, 0, target.shape).astype(int)
    if (first >= last).any():
        return
    back = np.linalg.inv(source_to_target)
    x, y = np.ogrid[first[0] : last[0], first[1] : last[1]]
    for z in range(first[2], last[2]):
        nearest = [
            np.floor(row[0] * x + row[1] * y + (row[2] * z + row[3]) + 0.5).astype(int) for row in back[:3]
        ]
        inside = np.logical_and.reduce(
            [(index >= 0) & (index < size) for index, size in zip(nearest, source.shape, strict=True)]
        )
        values = source[tuple(np.where(inside, index, 0) for index in nearest)]
        target[first[0] : last[0], first[1] : last[1], z] |= values & inside


def boxes_meet(source_to_target: Affine, shape: Shape, target: Shape) -> bool:
    """Whether the bounding box of a source grid, in target indices, reaches into the target."""
    box = (source_to_target @ _corners(shape))[:3]
    return bool(((box.max(axis=1) > -0.5) & (box.min(axis=1) < np.array(target) - 0.5)).all())


def _corners(shape: Shape) -> Affine:
    return np.array([[*corner, 1.0] for corner in product(*((0.0, size - 1.0) for size in shape))]).T
