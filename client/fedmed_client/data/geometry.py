"""Where image planes lie in the patient: sorted, checked, and put into one affine.

Positions and directions come in DICOM's LPS frame (DICOM PS3.3 C.7.6.2.1.1); the affine leaves in RAS.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedmed_common.errors import GeometryError

SAME_ORIENTATION = 1e-3
"""Largest difference between direction cosines of parallel planes."""
SAME_SPACING = 1e-3
"""Largest relative difference between pixel spacings of one volume."""
PERPENDICULAR = 1e-2
"""How far row and column directions may be from unit length and from a right angle."""
OFF_GRID = 0.1
"""How far a plane may lie from its place on an even grid, as a share of the distance between planes."""
SAME_PLACE_MM = 1e-2
"""Planes nearer than this lie in one place."""

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True, slots=True, kw_only=True)
class Plane:
    """One image plane in LPS millimetres.

    ``position``: centre of the first pixel. ``along_row``, ``along_column``: unit vectors of growing column and
    row index. ``spacing_mm``: between rows, between columns. ``thickness_mm``: used for a single plane only.
    """

    name: str
    position: tuple[float, ...]
    along_row: tuple[float, ...]
    along_column: tuple[float, ...]
    spacing_mm: tuple[float, ...]
    thickness_mm: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """Planes in order: ``order[k]`` is the plane at depth k; each of ``repeats`` lies where another plane does.

    ``repeats``: pairs (kept plane, repeated plane). ``affine``: ``(4, 4)``, voxel (column, row, depth) to RAS mm.
    """

    order: tuple[int, ...]
    repeats: tuple[tuple[int, int], ...]
    affine: NDArray[np.float64]


def stack_planes(planes: Sequence[Plane], *, source: str) -> Stack:
    """Sort planes along their normal and find the affine that places them all.

    Depth grows along row direction x column direction. The step between planes is taken from their positions,
    never from a declared thickness. When the planes are shifted evenly against each other (gantry tilt) the step is
    not parallel to the normal and the affine holds that shear, which is exact; nothing is resampled.

    Raises GeometryError naming ``source`` and the planes at fault: different orientations or spacings, a gap, an
    uneven step, an uneven shift.
    """
    _check_alike(planes, source)
    first = planes[0]
    row, column = np.asarray(first.along_row), np.asarray(first.along_column)
    normal = np.cross(row, column)
    normal /= np.linalg.norm(normal)
    positions = np.array([plane.position for plane in planes])
    depths = positions @ normal
    sequence = [int(k) for k in np.argsort(depths, kind="stable")]
    order, repeats = _without_repeats(sequence, depths, positions, planes, source)
    step = _step([planes[k] for k in order], positions[order], normal, source)
    affine = np.eye(4)
    affine[:3, 0] = row * first.spacing_mm[1]
    affine[:3, 1] = column * first.spacing_mm[0]
    affine[:3, 2] = step
    affine[:3, 3] = positions[order[0]]
    return Stack(order=tuple(order), repeats=tuple(repeats), affine=_LPS_TO_RAS @ affine)


def _check_alike(planes: Sequence[Plane], source: str) -> None:
    first = planes[0]
    for plane in planes:
        numbers = (
            *plane.position,
            *plane.along_row,
            *plane.along_column,
            *plane.spacing_mm,
            plane.thickness_mm,
        )
        if not np.isfinite(numbers).all():
            raise GeometryError(
                f"{source}: {plane.name} has a position or spacing that is not a finite number"
            )
        if min(*plane.spacing_mm, plane.thickness_mm) <= 0:
            raise GeometryError(
                f"{source}: {plane.name} has pixel spacing {plane.spacing_mm}, which must be positive"
            )
        axes = np.array([plane.along_row, plane.along_column])
        if np.abs(axes @ axes.T - np.eye(2)).max() > PERPENDICULAR:
            raise GeometryError(
                f"{source}: {plane.name}: row and column direction are not perpendicular unit vectors"
            )
        if np.abs(axes - np.array([first.along_row, first.along_column])).max() > SAME_ORIENTATION:
            raise GeometryError(f"{source}: {first.name} and {plane.name} are not parallel: not one volume")
        if not np.allclose(plane.spacing_mm, first.spacing_mm, rtol=SAME_SPACING, atol=0):
            raise GeometryError(
                f"{source}: {first.name} has pixel spacing {first.spacing_mm} mm, {plane.name} {plane.spacing_mm} mm"
            )


def _without_repeats(
    sequence: list[int],
    depths: NDArray[np.float64],
    positions: NDArray[np.float64],
    planes: Sequence[Plane],
    source: str,
) -> tuple[list[int], list[tuple[int, int]]]:
    order: list[int] = []
    repeats: list[tuple[int, int]] = []
    for k in sequence:
        kept = order[-1] if order else None
        if kept is None or depths[k] - depths[kept] > SAME_PLACE_MM:
            order.append(k)
        elif np.linalg.norm(positions[k] - positions[kept]) <= SAME_PLACE_MM:
            repeats.append((kept, k))
        else:
            raise GeometryError(
                f"{source}: {planes[kept].name} and {planes[k].name} lie in one plane side by side, "
                f"at {_place(planes[kept])} and {_place(planes[k])}"
            )
    return order, repeats


def _step(
    planes: Sequence[Plane], positions: NDArray[np.float64], normal: NDArray[np.float64], source: str
) -> NDArray[np.float64]:
    """The vector from each plane to the next, LPS mm."""
    if len(planes) == 1:
        return normal * planes[0].thickness_mm
    steps = np.diff(positions @ normal)
    typical = float(np.median(steps))
    wide = int(np.argmax(steps))
    if steps[wide] > (1 + 2 * OFF_GRID) * typical and steps[wide] > typical + 2 * SAME_PLACE_MM:
        raise GeometryError(
            f"{source}: a gap of {steps[wide]:.3f} mm where {typical:.3f} mm is usual, between {planes[wide].name} at "
            f"{_place(planes[wide])} and {planes[wide + 1].name} at {_place(planes[wide + 1])}: "
            f"{'a slice is missing' if steps[wide] > 1.5 * typical else 'the slices are unevenly spaced'}"
        )
    step: NDArray[np.float64] = (positions[-1] - positions[0]) / (len(planes) - 1)
    expected = positions[0] + np.arange(len(planes))[:, None] * step
    off = np.linalg.norm(positions - expected, axis=1)
    worst = int(np.argmax(off))
    if off[worst] > max(OFF_GRID * typical, SAME_PLACE_MM):
        raise GeometryError(
            f"{source}: unevenly spaced or shifted slices: {planes[worst].name} at {_place(planes[worst])} lies "
            f"{off[worst]:.3f} mm from its place on an even grid"
        )
    return step


def _place(plane: Plane) -> str:
    return "(" + ", ".join(f"{coordinate:.3f}" for coordinate in plane.position) + ") mm"
