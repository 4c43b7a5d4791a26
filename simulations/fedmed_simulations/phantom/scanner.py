"""A site's scanner: how the anatomy turns into numbers on a grid, and how those are stored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from fedmed_simulations.phantom.anatomy import HOSTS, STRUCTURES, TISSUES, Anatomy
from fedmed_simulations.phantom.settings import LESIONS
from fedmed_simulations.phantom.shapes import rotation

IMPLICIT, EXPLICIT = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1"
DEFLATED, RLE, JPEG_LS = "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.5", "1.2.840.10008.1.2.4.80"
SYNTAX_NAMES = {
    IMPLICIT: "implicit LE",
    EXPLICIT: "explicit LE",
    DEFLATED: "deflated",
    RLE: "RLE",
    JPEG_LS: "JPEG-LS",
}

CT_PORTAL_VENOUS = dict(
    zip(TISSUES, (-1000, -100, 50, 0, 115, 165, 230, 230, 95, 300, 430, 20, -10, 60, 150, -20), strict=True)
)
"""Hounsfield units."""

MR_T1 = dict(
    zip(TISSUES, (0, 820, 330, 200, 520, 300, 400, 400, 620, 90, 240, 330, 130, 130, 520, 250), strict=True)
)
MR_T2 = dict(
    zip(TISSUES, (0, 760, 180, 330, 260, 560, 660, 660, 480, 60, 150, 560, 960, 820, 480, 900), strict=True)
)
"""Arbitrary units."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scanner:
    """One scanner and its protocol.

    ``field_mm``: extent of the grid along columns, rows, slices, so the spacing is this over the shape. ``slice_gap``: share of
    the slice distance that the slice thickness leaves out. ``tilt_degrees``: about x, y, z of the patient. ``noise``: standard
    deviation in the contrast's units, Gaussian for CT and Rician for MR. ``bias``: size of the smooth multiplicative field, in
    powers of e. Stored value = (value - intercept) / slope, ``inverted``: MONOCHROME1, the stored range upside down.
    ``from_top``: instance 1 is the highest slice.
    """

    modality: Literal["CT", "MR"]
    description: str
    contrast: Mapping[str, float]
    field_mm: tuple[float, float, float]
    tilt_degrees: tuple[float, float, float] = (0.0, 0.0, 0.0)
    slice_gap: float = 0.0
    noise: float
    bias: float = 0.0
    manufacturer: str
    model: str
    transfer_syntax: str
    signed: bool
    bits_stored: int
    slope: float = 1.0
    intercept: float = 0.0
    inverted: bool = False
    from_top: bool = False

    @property
    def stored_range(self) -> tuple[int, int]:
        """Least and greatest stored value."""
        half = 2 ** (self.bits_stored - 1)
        return (-half, half - 1) if self.signed else (0, 2 * half - 1)

    def spacing_mm(self, shape: tuple[int, int, int]) -> tuple[float, float, float]:
        """Voxel size on a grid of this shape, rounded to what DICOM headers carry."""
        x, y, z = (round(extent / size, 6) for extent, size in zip(self.field_mm, shape, strict=True))
        return x, y, z


@dataclass(frozen=True, slots=True, kw_only=True)
class Scan:
    """Pixels and truth on one grid ``(X, Y, Z)``, columns along X.

    ``stored``: as written. ``organs``: tissue without lesions; ``lesions``: lesion tissue, 0 where there is none.
    ``affine``: ``(4, 4)``, voxel index to millimetres in DICOM's LPS frame.
    """

    stored: NDArray[np.int32]
    organs: NDArray[np.uint8]
    lesions: NDArray[np.uint8]
    affine: NDArray[np.float64]

    def mask(self, structure: str) -> NDArray[np.bool_]:
        """Where one of ``STRUCTURES`` is; an organ includes its lesions."""
        tissue = self.lesions if structure in LESIONS else self.organs
        mask: NDArray[np.bool_] = tissue == TISSUES.index(structure)
        return mask


def acquire(
    anatomy: Anatomy, scanner: Scanner, shape: tuple[int, int, int], rng: np.random.Generator
) -> Scan:
    """Scan a patient on the scanner's own grid; where the patient lies in it varies."""
    affine = _affine(scanner, shape, centre_mm=rng.uniform((-8, -8, -6), (8, 8, 6)))
    points = _points(affine, shape)
    organs, lesions = anatomy.tissues(points)
    _keep_small_lesions(anatomy, points, organs, lesions)
    texture = anatomy.texture.at(points)[0]
    values = _signal(scanner, np.where(lesions > 0, lesions, organs), texture, rng).reshape(shape)
    values = gaussian_filter(values, 0.5)
    values = _corrupt(values, scanner, rng)
    return Scan(
        stored=_store(values, scanner),
        organs=organs.reshape(shape),
        lesions=lesions.reshape(shape),
        affine=affine,
    )


def _affine(
    scanner: Scanner, shape: tuple[int, int, int], centre_mm: NDArray[np.float64]
) -> NDArray[np.float64]:
    affine = np.eye(4)
    affine[:3, :3] = rotation(scanner.tilt_degrees).round(9) * scanner.spacing_mm(shape)
    affine[:3, 3] = (centre_mm - affine[:3, :3] @ ((np.asarray(shape) - 1) / 2)).round(4)
    return affine


def _points(affine: NDArray[np.float64], shape: tuple[int, int, int]) -> NDArray[np.float32]:
    points = np.empty((3, *shape), np.float32)
    for axis in range(3):
        steps = [affine[axis, k] * np.arange(size) for k, size in enumerate(shape)]
        points[axis] = (
            affine[axis, 3] + steps[0][:, None, None] + steps[1][None, :, None] + steps[2][None, None, :]
        )
    return points.reshape(3, -1)


def _keep_small_lesions(
    anatomy: Anatomy, points: NDArray[np.float32], organs: NDArray[np.uint8], lesions: NDArray[np.uint8]
) -> None:
    """A lesion class between all voxel centres of a coarse grid gets the nearest voxel of its host: who has it shows it."""
    for name, shape in anatomy.lesions:
        index = TISSUES.index(name)
        if np.any(lesions == index):
            continue
        host = np.flatnonzero(np.isin(organs, [TISSUES.index(organ) for organ in HOSTS[name]]))
        inside = host if len(host) else np.arange(len(organs))
        distance = ((points[:, inside] - shape.centre.astype(np.float32)[:, None]) ** 2).sum(axis=0)
        lesions[inside[np.argmin(distance)]] = index


def _signal(
    scanner: Scanner, tissue: NDArray[np.uint8], texture: NDArray[np.float32], rng: np.random.Generator
) -> NDArray[np.float32]:
    table = np.array([scanner.contrast[name] for name in TISSUES], np.float64)
    draws = rng.normal(size=len(TISSUES))
    if scanner.modality == "CT":
        table[1:] += 6.0 * draws[1:]
        roughness = np.full(len(TISSUES), 6.0)
    else:
        table *= (1.0 + 0.04 * draws) * rng.uniform(0.85, 1.15)
        roughness = 0.03 * table
    roughness[0] = 0.0
    values: NDArray[np.float32] = (
        table.astype(np.float32)[tissue] + roughness.astype(np.float32)[tissue] * texture
    )
    return values


def _corrupt(values: NDArray[np.float32], scanner: Scanner, rng: np.random.Generator) -> NDArray[np.float32]:
    first = rng.standard_normal(values.shape, dtype=np.float32) * np.float32(scanner.noise)
    if scanner.modality == "CT":
        noisy: NDArray[np.float32] = values + first
        return noisy
    second = rng.standard_normal(values.shape, dtype=np.float32) * np.float32(scanner.noise)
    signal: NDArray[np.float32] = values * _bias_field(values.shape, scanner.bias, rng) + first
    magnitude: NDArray[np.float32] = np.hypot(signal, second)
    return magnitude


def _bias_field(shape: tuple[int, ...], size: float, rng: np.random.Generator) -> NDArray[np.float32]:
    x, y, z = np.meshgrid(
        *(np.linspace(-1, 1, n, dtype=np.float32) for n in shape), indexing="ij", sparse=True
    )
    a, b, c, d, e = (rng.uniform(-1, 1, size=5) * size).astype(np.float32)
    field = np.exp(a * x + b * y + c * z + d * (x * x - 0.33) + e * (y * y - 0.33))
    return np.asarray(field, np.float32)


def _store(values: NDArray[np.float32], scanner: Scanner) -> NDArray[np.int32]:
    low, high = scanner.stored_range
    stored = np.rint((values - scanner.intercept) / scanner.slope).clip(low, high)
    written: NDArray[np.int32] = (low + high - stored if scanner.inverted else stored).astype(np.int32)
    return written


SCANNERS: tuple[Scanner, ...] = (
    Scanner(
        modality="CT", description="Abdomen portal venous", contrast=CT_PORTAL_VENOUS, field_mm=(364.8, 364.8, 201.6),
        noise=18.0, manufacturer="Aurora Imaging", model="Helix 64", transfer_syntax=EXPLICIT, signed=True, bits_stored=16,
    ),
    Scanner(
        modality="MR", description="Abdomen T1 VIBE", contrast=MR_T1, field_mm=(384.0, 364.8, 211.2), slice_gap=0.1,
        noise=22.0, bias=0.18, manufacturer="Borealis Medical", model="Spin 1.5T", transfer_syntax=IMPLICIT, signed=False,
        bits_stored=12, from_top=True,
    ),
    Scanner(
        modality="CT", description="Abdomen contrast", contrast=CT_PORTAL_VENOUS, field_mm=(384.0, 384.0, 192.0),
        tilt_degrees=(9.0, -5.0, 4.0), noise=28.0, manufacturer="Cirrus Health", model="Arc CT 128", transfer_syntax=RLE,
        signed=False, bits_stored=13, slope=0.5, intercept=-1024.0,
    ),
    Scanner(
        modality="MR", description="Abdomen T2", contrast=MR_T2, field_mm=(374.4, 374.4, 230.4), tilt_degrees=(-4.0, 0.0, 3.0),
        slice_gap=0.2, noise=28.0, bias=0.25, manufacturer="Dawn Magnetics", model="Field 3T", transfer_syntax=JPEG_LS,
        signed=False, bits_stored=12, inverted=True,
    ),
)  # fmt: skip
"""The scanners of the first sites. Further sites have varied copies of these."""


def scanner_of(site: int, seed: int) -> Scanner:
    """The scanner of the site with this index: one of ``SCANNERS``, varied from the second turn on."""
    turn, kind = divmod(site, len(SCANNERS))
    base = SCANNERS[kind]
    if turn == 0:
        return base
    rng = np.random.default_rng([seed, site, 1])
    x, y, z = (round(extent * rng.uniform(0.95, 1.05), 1) for extent in base.field_mm)
    tilts = [round(angle + rng.uniform(-5, 5), 1) for angle in base.tilt_degrees]
    structures = {name: base.contrast[name] * rng.uniform(0.93, 1.07) for name in STRUCTURES}
    return replace(
        base,
        model=f"{base.model} r{turn}",
        contrast={**base.contrast, **structures},
        field_mm=(x, y, z),
        tilt_degrees=(tilts[0], tilts[1], tilts[2]),
        noise=round(base.noise * rng.uniform(0.7, 1.4), 1),
        transfer_syntax=(EXPLICIT, DEFLATED, IMPLICIT, RLE, JPEG_LS)[rng.integers(5)],
        from_top=bool(rng.integers(2)),
    )
