"""Which series a DICOM label was drawn on.

References come first: instances, then the series, then the frame of reference. Where they leave several series, or only the
frame of reference speaks, positions decide. A label is never matched to another patient's series.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fedmed_client.data import rtstruct, seg
from fedmed_client.data.frame_place import frame_affines
from fedmed_client.data.grid import OFF_SLICE, Affine
from fedmed_client.data.index import LabelObject, Series
from fedmed_client.data.text import printable
from fedmed_common.errors import DataError, GeometryError, LabelError

_HEADER_TAGS = [
    "Rows",
    "Columns",
    "NumberOfFrames",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
]
_PLANE_POINTS = {"seg": seg.plane_points, "rtstruct": rtstruct.plane_points}
_LEAST_COVERED = 0.5
_SAME_COVER = 1e-6


def match(label: LabelObject, series: Sequence[Series]) -> Series:
    """The series that the label belongs to.

    Opens files only where references do not settle it. Raises LabelError when the images are not here or several series fit
    equally well, GeometryError when the label lies on none of those it could belong to.
    """
    own = [one for one in series if one.patient == label.patient]
    referenced = _by_instance(label, own) or [one for one in own if one.uid in label.referenced_series]
    if len(referenced) == 1:
        return referenced[0]
    candidates = referenced or [
        one for one in own if label.frame_of_reference and one.frame_of_reference == label.frame_of_reference
    ]
    if not candidates:
        raise LabelError(
            f"{label.path}: the images it was drawn on are not here ({len(own)} series of this patient)"
        )
    return _by_position(label, candidates)


def _by_instance(label: LabelObject, series: Sequence[Series]) -> list[Series]:
    """The series that hold the most of the referenced instances."""
    wanted = set(label.referenced_instances)
    held = [len(wanted.intersection(one.instances)) for one in series]
    most = max(held, default=0)
    return [one for one, count in zip(series, held, strict=True) if most and count == most]


def _by_position(label: LabelObject, candidates: Sequence[Series]) -> Series:
    points = _PLANE_POINTS[label.kind](label.path)
    cover = [_cover(points, one) for one in candidates]
    best = max(cover)
    if best < _LEAST_COVERED:
        raise GeometryError(f"{label.path}: does not lie on the slices of {_listed(candidates)}")
    fitting = [one for one, share in zip(candidates, cover, strict=True) if share > best - _SAME_COVER]
    if len(fitting) > 1:
        raise LabelError(
            f"{label.path}: fits {len(fitting)} series equally well: {_listed(fitting)}\n"
            "  fix: keep the one it was drawn on, or narrow data.modality or data.series_description in site.toml"
        )
    return fitting[0]


def _cover(planes: Sequence[NDArray[np.float64]], series: Series) -> float:
    """How much of a label's planes ``(points, 3)``, in millimetres RAS, lies on slices of the series and inside their edges.

    0 also where the label skips every other slice or more: it was then drawn on thicker slices.
    """
    try:
        slices, size = _slices(series)
    except DataError:
        return 0.0
    to_plane = np.linalg.inv(slices[0])
    height = np.array([(to_plane @ affine[:, 3])[2] for affine in slices])
    order = np.argsort(height)
    gaps = np.diff(height[order])
    tolerance_mm = OFF_SLICE * float(np.median(gaps)) if gaps.size and np.median(gaps) > 0 else OFF_SLICE
    shares, hit = [], set()
    for points in planes:
        own_heights = points @ to_plane[2, :3] + to_plane[2, 3]
        nearest = int(np.abs(height[order] - own_heights.mean()).argmin())
        if np.abs(own_heights - height[order[nearest]]).max() > tolerance_mm:
            shares.append(0.0)
            continue
        hit.add(nearest)
        pixel = (points - slices[order[nearest]][:3, 3]) @ np.linalg.pinv(slices[0][:3, :2]).T
        shares.append(float(((pixel > -0.5) & (pixel < np.array(size) - 0.5)).all(axis=1).mean()))
    sparse = len(hit) > 1 and np.diff(sorted(hit)).min() > 1
    return 0.0 if sparse else float(np.mean(shares))


def _slices(series: Series) -> tuple[list[Affine], tuple[int, int]]:
    """Every image plane, and (columns, rows)."""
    import pydicom

    affines: list[Affine] = []
    size = (0, 0)
    for path in series.files:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                header = pydicom.dcmread(
                    path, force=True, stop_before_pixels=True, specific_tags=_HEADER_TAGS
                )
                affines += frame_affines(header, path)
                size = (int(header.Columns), int(header.Rows))
        except DataError:
            raise
        except Exception as error:
            raise GeometryError(f"{path}: its place cannot be read ({type(error).__name__})") from error
    return affines, size


def _listed(series: Sequence[Series]) -> str:
    return "; ".join(
        f"{printable(one.modality)} '{printable(one.description)}' ({len(one.files)} files in {one.files[0].parent})"
        for one in series
    )
