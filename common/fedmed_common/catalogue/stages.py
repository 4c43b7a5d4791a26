"""How deep a U-Net is, and along which axes it pools and convolves at each level, from patch and voxel size.

The rules are those of nnU-Net (Isensee et al. 2021, 'nnU-Net: a self-configuring method for deep learning-based biomedical image
segmentation', Nature Methods 18, supplementary note 2: 'architecture template').
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

Axes = tuple[int, ...]

LEAST_EDGE = 4
"""Voxels: an axis is halved while at least so many are left."""


def plan_stages(
    patch: Sequence[int], spacing_mm: Sequence[float] | None
) -> tuple[tuple[Axes, ...], tuple[Axes, ...]]:
    """Kernels and strides of each stage, the finest first, whose stride is 1; two stages at least.

    An axis is halved where its voxels are less than twice as long as the shortest; a kernel spans the largest set of axes whose
    voxels are within a factor of two of one another, and is 1 along the others. The deepest kernel is 3 along all. Without
    ``spacing_mm`` voxels count as cubes.
    """
    size, length = list(patch), list(spacing_mm or [1.0] * len(patch))
    axes = range(len(size))
    kernels: list[Axes] = []
    strides: list[Axes] = [tuple(1 for _ in axes)]
    while True:
        halved = [axis for axis in axes if length[axis] / min(length) < 2 and size[axis] >= 2 * LEAST_EDGE]
        if not halved:
            return (*kernels, tuple(3 for _ in axes)), tuple(strides)
        together = _alike(length)
        kernels.append(tuple(3 if axis in together else 1 for axis in axes))
        strides.append(tuple(2 if axis in halved else 1 for axis in axes))
        for axis in halved:
            size[axis], length[axis] = ceil(size[axis] / 2), length[axis] * 2


def _alike(length: Sequence[float]) -> set[int]:
    """The largest set of axes that are all within a factor of two of one of them; of equal ones the first."""
    sets = [
        {other for other, its in enumerate(length) if its / mine < 2 and mine / its < 2} for mine in length
    ]
    return max(sets, key=len)
