"""How far two outlines lie apart, in millimetres."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion, find_objects
from scipy.spatial import KDTree

ROUNDING = 1e-6
"""A distance equal to the tolerance but for its last digits is within it."""


@dataclass(frozen=True, slots=True)
class SurfaceDistances:
    """Millimetres from each surface voxel of one mask to the nearest surface voxel of the other."""

    to_truth: NDArray[np.float64]
    to_prediction: NDArray[np.float64]

    def hausdorff_95(self) -> float:
        """The larger of the two directions' 95th percentiles."""
        return float(max(np.percentile(self.to_truth, 95), np.percentile(self.to_prediction, 95)))

    def surface_dice(self, tolerance_mm: float) -> float:
        """The share of both surfaces that lies within the tolerance of the other.

        The normalised surface Dice of Nikolov et al. 2021, 'Clinically applicable segmentation of head and neck anatomy for
        radiotherapy', J Med Internet Res 23(7); each surface voxel counts once, whatever the area of its faces.
        """
        limit_mm = tolerance_mm * (1 + ROUNDING)
        near = sum(
            np.count_nonzero(distances <= limit_mm) for distances in (self.to_truth, self.to_prediction)
        )
        return float(near / (self.to_truth.size + self.to_prediction.size))


def surface_distances(
    prediction: NDArray[np.bool_], truth: NDArray[np.bool_], spacing_mm: Sequence[float]
) -> SurfaceDistances:
    """Both directions between two masks of one shape, neither of them empty.

    A surface voxel is in the mask and has a face neighbour that is not; beyond the image nothing is in the mask. An axis of one
    voxel has no such neighbours: a photograph's outline is a curve.
    """
    predicted, true = surface_points_mm(prediction, spacing_mm), surface_points_mm(truth, spacing_mm)
    return SurfaceDistances(
        to_truth=KDTree(true).query(predicted)[0], to_prediction=KDTree(predicted).query(true)[0]
    )


def surface_points_mm(mask: NDArray[np.bool_], spacing_mm: Sequence[float]) -> NDArray[np.float64]:
    """Places of the surface voxels, ``(N, axes)``, leaving out axes of one voxel."""
    (box,) = find_objects(mask.astype(np.uint8))
    flat = tuple(axis for axis, size in enumerate(mask.shape) if size == 1)
    kept = [axis for axis in range(mask.ndim) if axis not in flat]
    inside = mask[box].squeeze(flat)
    points = np.argwhere(inside & ~binary_erosion(inside))
    corner = np.array([box[axis].start for axis in kept], dtype=np.float64)
    spacing = np.array([spacing_mm[axis] for axis in kept], dtype=np.float64)
    return np.asarray((points + corner) * spacing)


def diagonal_mm(shape: Sequence[int], spacing_mm: Sequence[float]) -> float:
    """The largest distance within the image, corner to corner."""
    extents = [size * spacing for size, spacing in zip(shape, spacing_mm, strict=True) if size > 1]
    return math.hypot(*extents)
