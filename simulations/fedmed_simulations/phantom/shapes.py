"""Implicit shapes and smooth random fields in the patient's frame: millimetres, LPS (left, posterior, superior)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Points = NDArray[np.float32]
"""``(3, N)`` positions in millimetres."""


@dataclass(frozen=True, slots=True)
class Ellipsoid:
    """``rotation``: ``(3, 3)``, its columns are the directions of the three radii."""

    centre: NDArray[np.float64]
    radii: NDArray[np.float64]
    rotation: NDArray[np.float64]

    def inside(self, points: Points) -> NDArray[np.intp]:
        """Indices of the points that lie in the shape."""
        reach = np.sqrt(((self.rotation * self.radii) ** 2).sum(axis=1))
        near = _in_box(points, self.centre - reach, self.centre + reach)
        x, y, z = (points[axis, near] - np.float32(self.centre[axis]) for axis in range(3))
        distance = np.zeros(len(near), np.float32)
        for direction, radius in zip(self.rotation.T, self.radii, strict=True):
            u, v, w = (direction / radius).astype(np.float32)
            distance += (u * x + v * y + w * z) ** 2
        return near[distance <= 1.0]


@dataclass(frozen=True, slots=True)
class Tube:
    """All points within ``radius`` of a broken line. ``path``: ``(M, 3)``."""

    path: NDArray[np.float64]
    radius: float

    def inside(self, points: Points) -> NDArray[np.intp]:
        """Indices of the points that lie in the shape."""
        near = _in_box(points, self.path.min(axis=0) - self.radius, self.path.max(axis=0) + self.radius)
        local = points[:, near]
        nearest = np.full(len(near), np.inf, np.float32)
        for start, end in zip(self.path[:-1], self.path[1:], strict=True):
            x, y, z = (local[axis] - np.float32(start[axis]) for axis in range(3))
            u, v, w = (end - start).astype(np.float32)
            along = np.clip((x * u + y * v + z * w) / (u * u + v * v + w * w), 0.0, 1.0)
            np.minimum(
                nearest, (x - along * u) ** 2 + (y - along * v) ** 2 + (z - along * w) ** 2, out=nearest
            )
        return near[nearest <= self.radius**2]


Shape = Ellipsoid | Tube


@dataclass(frozen=True, slots=True)
class Waves:
    """A smooth random field: a sum of plane waves.

    ``vectors``: ``(M, 3)`` radians per millimetre; ``phases``: ``(M,)``; ``amplitudes``: ``(M, D)`` for D components.
    """

    vectors: NDArray[np.float64]
    phases: NDArray[np.float64]
    amplitudes: NDArray[np.float64]

    def at(self, points: Points) -> NDArray[np.float32]:
        """The field ``(D, N)`` at the points."""
        field = np.zeros((self.amplitudes.shape[1], points.shape[1]), np.float32)
        for vector, phase, amplitudes in zip(self.vectors, self.phases, self.amplitudes, strict=True):
            u, v, w = vector.astype(np.float32)
            wave = np.sin(u * points[0] + v * points[1] + w * points[2] + np.float32(phase))
            for component, amplitude in enumerate(amplitudes.astype(np.float32)):
                field[component] += amplitude * wave
        return field


def draw_waves(
    rng: np.random.Generator,
    *,
    count: int,
    wavelengths_mm: tuple[float, float],
    size: float,
    components: int = 1,
) -> Waves:
    """Plane waves in random directions; each component has the standard deviation ``size`` over space."""
    directions = rng.normal(size=(count, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    vectors = directions * (2 * np.pi / rng.uniform(*wavelengths_mm, size=(count, 1)))
    amplitudes = rng.normal(size=(count, components))
    amplitudes *= size * np.sqrt(2.0) / np.linalg.norm(amplitudes, axis=0)
    return Waves(vectors, rng.uniform(0, 2 * np.pi, size=count), amplitudes)


def rotation(degrees: ArrayLike) -> NDArray[np.float64]:
    """``(3, 3)``: turns about x, then y, then z."""
    result = np.eye(3)
    for axis, angle in enumerate(np.deg2rad(np.asarray(degrees, np.float64))):
        first, second = (axis + 1) % 3, (axis + 2) % 3
        turn = np.eye(3)
        turn[first, first] = turn[second, second] = np.cos(angle)
        turn[second, first] = np.sin(angle)
        turn[first, second] = -turn[second, first]
        result = turn @ result
    return result


def _in_box(points: Points, low: NDArray[np.float64], high: NDArray[np.float64]) -> NDArray[np.intp]:
    near = np.flatnonzero((points[2] >= low[2]) & (points[2] <= high[2]))
    for axis in (0, 1):
        values = points[axis, near]
        near = near[(values >= low[axis]) & (values <= high[axis])]
    return near
