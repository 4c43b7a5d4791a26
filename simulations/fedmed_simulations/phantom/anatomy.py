"""A patient's abdomen, as tissues at any position: organs vary in place, size and form, lesions lie within their organ.

The anatomy knows no scanner: two grids that sample it see the same patient.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedmed_simulations.phantom.settings import LESIONS
from fedmed_simulations.phantom.shapes import Ellipsoid, Points, Shape, Tube, Waves, draw_waves, rotation

STRUCTURES = ("liver", "spleen", "kidney_right", "kidney_left", "pancreas", "aorta", "spine", *LESIONS)
"""What labels can outline. Left and right kidney are two structures of one class."""

TISSUES = ("air", "fat", "muscle", "bowel", *STRUCTURES)
"""A voxel's tissue is the index of its name here."""

CLASS_OF = {
    structure: "kidneys" if structure.startswith("kidney_") and structure not in LESIONS else structure
    for structure in STRUCTURES
}
"""The class that a structure belongs to."""

HOSTS = {
    "liver_lesion": ("liver",),
    "kidney_cyst": ("kidney_right", "kidney_left"),
    "spleen_lesion": ("spleen",),
    "bone_lesion": ("spine",),
    "pancreas_cyst": ("pancreas",),
}
"""The structures that a lesion class occurs in."""

LESION_RADIUS_MM = {
    "liver_lesion": (14.0, 28.0),
    "kidney_cyst": (13.0, 20.0),
    "spleen_lesion": (12.0, 20.0),
    "bone_lesion": (12.0, 17.0),
    "pancreas_cyst": (11.0, 16.0),
}

Painted = tuple[str, Shape]


@dataclass(frozen=True, slots=True, kw_only=True)
class Anatomy:
    """One patient. Shapes are painted in order, later over earlier; a lesion only within its hosts."""

    organs: tuple[Painted, ...]
    lesions: tuple[tuple[str, Ellipsoid], ...]
    deformation: Waves
    bowel: Waves
    texture: Waves

    def tissues(self, points: Points) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Tissue without lesions, and lesion tissue (0 where there is none), each ``(N,)``."""
        bent = points + self.deformation.at(points)
        organs = _paint(self.organs, bent)
        viscera = np.flatnonzero(organs == TISSUES.index("bowel"))
        fatty = self.bowel.at(bent[:, viscera])[0] < 0.0
        organs[viscera[fatty]] = TISSUES.index("fat")
        lesions = np.zeros_like(organs)
        for name, shape in self.lesions:
            reached = shape.inside(bent)
            lesions[reached[np.isin(organs[reached], _indices(HOSTS[name]))]] = TISSUES.index(name)
        return organs, lesions


def draw_anatomy(rng: np.random.Generator, lesions: Sequence[str]) -> Anatomy:
    """A random patient who shows these lesion classes and no other."""
    organs = tuple(_draw_organs(rng))
    found = [_draw_lesion(rng, name, organs) for name in lesions for _ in range(rng.integers(1, 4))]
    return Anatomy(
        organs=organs,
        lesions=tuple(found),
        deformation=draw_waves(rng, count=8, wavelengths_mm=(110.0, 260.0), size=4.0, components=3),
        bowel=draw_waves(rng, count=8, wavelengths_mm=(35.0, 80.0), size=1.0),
        texture=draw_waves(rng, count=6, wavelengths_mm=(15.0, 60.0), size=1.0),
    )


def _draw_organs(rng: np.random.Generator) -> list[Painted]:
    size = rng.normal(1.0, 0.04)

    def near(centre: Sequence[float], spread_mm: float = 4.0) -> NDArray[np.float64]:
        offset = rng.normal(0.0, spread_mm, size=3).clip(-2 * spread_mm, 2 * spread_mm)
        place: NDArray[np.float64] = size * (np.asarray(centre) + offset)
        return place

    def ellipsoid(
        centre: NDArray[np.float64], radii: Sequence[float], turn: Sequence[float] = (0, 0, 0)
    ) -> Ellipsoid:
        radii_mm = size * np.asarray(radii) * rng.uniform(0.88, 1.12, size=3)
        return Ellipsoid(centre, radii_mm, rotation(np.asarray(turn) + rng.normal(0.0, 6.0, size=3)))

    girth = size * rng.uniform(0.95, 1.05, size=2)
    fat_mm = rng.uniform(8.0, 20.0)
    liver, spleen = near((-68, -12, 32)), near((92, 32, 38))
    kidney_right, kidney_left = near((-62, 46, -38)), near((64, 46, -26))
    aorta_mm = rng.uniform(13.0, 16.5)
    pancreas = np.stack(
        [near(point, 3.0) for point in ((-40, -18, -22), (-18, -30, -10), (18, -24, -2), (62, -4, 12))]
    )
    aorta = np.stack([near((15, 22, z), 2.0) for z in (-180, -90, 0, 90, 180)])
    return [
        ("fat", _cylinder(girth * (160, 114))),
        ("muscle", _cylinder(girth * (160, 114) - fat_mm)),
        ("bowel", _cylinder(girth * (160, 114) - fat_mm - 12.0)),
        ("pancreas", Tube(pancreas, rng.uniform(15.5, 19.0))),
        ("liver", ellipsoid(liver, (58, 66, 66), (0, 0, 10))),
        ("liver", ellipsoid(liver + np.array((55.0, -28.0, 14.0)), (58, 36, 38), (0, 10, 0))),
        ("spleen", ellipsoid(spleen, (27, 40, 46), (15, 0, 10))),
        ("kidney_right", ellipsoid(kidney_right, (27, 25, 50), (0, 8, 0))),
        ("kidney_left", ellipsoid(kidney_left, (27, 25, 50), (0, -8, 0))),
        ("aorta", Tube(aorta, aorta_mm)),
        *_draw_spine(rng, size),
    ]


def _draw_spine(rng: np.random.Generator, size: float) -> list[Painted]:
    start, height = rng.uniform(0.0, 34.0), 34.0 * size
    lean = rng.normal(0.0, 0.04)
    levels = np.arange(-5, 6) * height + start
    axis = np.stack([lean * levels, size * 62.0 + 4.0 * np.sin(levels / 90.0), levels], axis=1)
    spine: list[Painted] = [("spine", Tube(axis, size * 17.0))]
    for centre in axis:
        radii = size * np.array((26.0, 21.0, 17.0)) * rng.uniform(0.94, 1.06, size=3)
        spine.append(("spine", Ellipsoid(centre, radii, np.eye(3))))
        spine.append(
            (
                "spine",
                Ellipsoid(
                    centre + size * np.array((0, 25, -6)), size * np.array((9.0, 16.0, 11.0)), np.eye(3)
                ),
            )
        )
    return spine


def _draw_lesion(rng: np.random.Generator, name: str, organs: Sequence[Painted]) -> tuple[str, Ellipsoid]:
    """Of many random places the one that lies deepest in the organ, so that a lesion never falls outside it."""
    radii = rng.uniform(*LESION_RADIUS_MM[name]) * rng.uniform(0.85, 1.15, size=3)
    hosts = [shape for organ, shape in organs if organ in HOSTS[name]]
    candidates = np.stack([_within(rng, hosts[rng.integers(len(hosts))]) for _ in range(32)])
    probes = np.concatenate([np.zeros((1, 3)), np.diag(radii), -np.diag(radii)]) * 0.6
    points = (candidates[:, None, :] + probes).reshape(-1, 3).T.astype(np.float32)
    in_host = np.isin(_paint(organs, points), _indices(HOSTS[name])).reshape(len(candidates), -1)
    visible = (np.abs(candidates[:, 2]) < 80.0) & in_host[:, 0]
    best = int(np.argmax(in_host.sum(axis=1) + 100 * visible))
    return name, Ellipsoid(candidates[best], radii, rotation(rng.uniform(0, 180, size=3)))


def _within(rng: np.random.Generator, shape: Shape) -> NDArray[np.float64]:
    if isinstance(shape, Tube):
        leg = rng.integers(len(shape.path) - 1)
        share = rng.uniform()
        centre: NDArray[np.float64] = (1 - share) * shape.path[leg] + share * shape.path[leg + 1]
        return centre + rng.normal(0.0, shape.radius / 4, size=3)
    offset = rng.normal(size=3)
    offset *= 0.7 * rng.uniform() ** (1 / 3) / np.linalg.norm(offset)
    inside: NDArray[np.float64] = shape.centre + (shape.rotation * (shape.radii * offset)).sum(axis=1)
    return inside


def _paint(shapes: Sequence[Painted], points: Points) -> NDArray[np.uint8]:
    tissue = np.zeros(points.shape[1], np.uint8)
    for name, shape in shapes:
        tissue[shape.inside(points)] = TISSUES.index(name)
    return tissue


def _cylinder(radii: NDArray[np.float64]) -> Ellipsoid:
    return Ellipsoid(np.zeros(3), np.array([*radii, 1e5]), np.eye(3))


def _indices(names: Sequence[str]) -> list[int]:
    return [TISSUES.index(name) for name in names]
