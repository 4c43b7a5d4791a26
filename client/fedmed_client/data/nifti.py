"""NIfTI images and label maps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedmed_client.data.grid import align
from fedmed_client.data.volume import Volume
from fedmed_common.errors import GeometryError, LabelError, UnreadableFile


def read_nifti(path: Path) -> Volume:
    """An image ``(C, X, Y, Z)`` in stored units after the file's own scaling. A fourth or fifth axis counts as channels.

    Raises UnreadableFile when it is no NIfTI, is cut off or holds values that are not finite, GeometryError when its affine is
    singular.
    """
    data, affine = _load(path)
    if not np.isfinite(data).all():
        raise UnreadableFile(f"{path}: holds values that are not finite numbers")
    return Volume(voxels=np.ascontiguousarray(np.moveaxis(data, 3, 0), dtype=np.float32), affine=affine)


def read_nifti_label(path: Path, volume: Volume) -> NDArray[np.int64]:
    """A label map ``(X, Y, Z)``, its axes turned to those of the volume where they are permuted or flipped.

    Raises UnreadableFile, LabelError when a value is negative or no whole number, GeometryError when the grids differ otherwise.
    """
    data, affine = _load(path)
    if data.shape[3] != 1:
        raise LabelError(f"{path}: has {data.shape[3]} channels; a label map has one")
    values = _whole_numbers(data[..., 0], path)
    alignment = align(
        np.linalg.inv(volume.affine) @ affine, (values.shape[0], values.shape[1], values.shape[2])
    )
    if alignment is None:
        raise GeometryError(f"{path}: its affine is not that of the image, also with axes swapped or flipped")
    turned = alignment.oriented(values)
    if turned.shape != volume.shape or any(alignment.start):
        raise GeometryError(
            f"{path}: covers voxels {turned.shape} from {alignment.start} of the image, which has {volume.shape} from (0, 0, 0)"
        )
    return np.ascontiguousarray(turned)


def _whole_numbers(values: NDArray[Any], path: Path) -> NDArray[np.int64]:
    if values.dtype.kind not in "biuf":
        raise LabelError(f"{path}: stored as {values.dtype}; a label map holds whole numbers")
    if not np.isfinite(values).all():
        raise LabelError(f"{path}: holds values that are not finite numbers")
    whole = np.rint(values)
    if values.dtype.kind == "f" and np.abs(values - whole).max(initial=0.0) > 1e-3:
        raise LabelError(f"{path}: holds values between whole numbers; was it resampled with interpolation?")
    if whole.min(initial=0) < 0:
        raise LabelError(f"{path}: holds negative values; a label map counts from 0")
    return np.asarray(whole, dtype=np.int64)


def _load(path: Path) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Values ``(X, Y, Z, C)`` and affine."""
    import nibabel

    try:
        image: Any = nibabel.load(path)
        data = np.asanyarray(image.dataobj)
        affine = np.asarray(image.affine, dtype=np.float64)
    except Exception as error:
        raise UnreadableFile(f"{path}: not readable as NIfTI ({type(error).__name__}: {error})") from error
    if data.dtype.kind not in "biuf" or data.ndim < 2 or data.ndim > 5 or 0 in data.shape:
        raise UnreadableFile(
            f"{path}: values {data.dtype} of shape {data.shape}; expected numbers on two to five axes"
        )
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise GeometryError(f"{path}: its affine is singular; set qform or sform")
    grid = (*data.shape, 1, 1)[:3]
    return data.reshape(*grid, -1), affine
