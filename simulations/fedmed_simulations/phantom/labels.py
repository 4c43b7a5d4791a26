"""What a site's annotators drew, and the NIfTI form of it."""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
from numpy.typing import NDArray

from fedmed_simulations.phantom.plan import BODY_NAME, SitePlan
from fedmed_simulations.phantom.scanner import Scan
from fedmed_simulations.phantom.settings import LESIONS

OVERLAPPING = ("seg-binary", "rtstruct")
"""Formats in which an organ's label includes its lesions; a label map can hold only one name per voxel."""

LPS_TO_RAS = np.diag((-1.0, -1.0, 1.0, 1.0))


@dataclass(frozen=True, slots=True)
class Segment:
    """One labelled structure; ``mask``: ``(X, Y, Z)`` on the scan's grid. ``structure`` is the first of those it joins."""

    name: str
    structure: str
    mask: NDArray[np.bool_]


def segments(scan: Scan, site: SitePlan) -> list[Segment]:
    """What the site labels of this patient, without empty segments. Lesions come after organs.

    An organ keeps the lesions that the site does not annotate, because who does not mark a lesion draws the organ over it.
    """
    overlapping = site.label_format in OVERLAPPING
    marked = np.zeros_like(scan.lesions, dtype=bool)
    if not overlapping:
        for lesion in site.annotated:
            marked |= scan.mask(lesion)
    found: dict[str, Segment] = {}
    for structure in site.structures:
        mask = scan.mask(structure)
        if structure not in LESIONS:
            mask = mask & ~marked
        name = site.names[structure]
        if name in found:
            found[name] = Segment(name, found[name].structure, found[name].mask | mask)
        elif mask.any():
            found[name] = Segment(name, structure, mask)
    if site.label_format == "rtstruct":
        found[BODY_NAME] = Segment(BODY_NAME, "body", scan.organs > 0)
    return list(found.values())


def write_nifti(scan: Scan, found: list[Segment], file: Path) -> None:
    """An integer label map, stored in the orientation closest to RAS; a segment's name is its value."""
    values = np.zeros(scan.organs.shape, np.uint8)
    for segment in found:
        values[segment.mask] = int(segment.name)
    image = nibabel.as_closest_canonical(nibabel.Nifti1Image(values, LPS_TO_RAS @ scan.affine))
    image.header.set_xyzt_units("mm")
    file.write_bytes(gzip.compress(image.to_bytes(), compresslevel=6, mtime=0))
