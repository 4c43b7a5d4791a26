"""Photographs and their masks: PNG, JPEG, TIFF and what else Pillow reads."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedmed_client.data.volume import Volume
from fedmed_common.errors import LabelError, UnreadableFile

_DEEP_MODES = ("I;16", "I;16L", "I;16B", "I;16N")
_DEEP_TO_BYTE = 65535 / 255
_HALF = 128


def read_image(path: Path, channels: int) -> Volume:
    """A picture ``(channels, rows, columns, 1)``, float32 on the scale 0..255 whatever its depth; affine is the identity.

    ``channels``: 1 for grey (colour by ITU-R 601 luma), 3 for colour. Alpha is dropped; the EXIF orientation is applied.
    32-bit pictures keep their values. Raises UnreadableFile.
    """
    if channels not in (1, 3):
        raise UnreadableFile(f"{path}: a picture gives 1 or 3 channels, not the {channels} of data.channels")
    picture = _open(path)
    if picture.mode in _DEEP_MODES or picture.mode in ("I", "F"):
        grey = _values(picture).astype(np.float32)
        deep = picture.mode in _DEEP_MODES or (picture.mode == "I" and picture.format == "PNG")
        planes = np.repeat(grey[None] / np.float32(_DEEP_TO_BYTE) if deep else grey[None], channels, axis=0)
    elif channels == 1:
        planes = np.asarray(_flat(picture).convert("L"), dtype=np.float32)[None]
    else:
        planes = np.moveaxis(np.asarray(_flat(picture).convert("RGB"), dtype=np.float32), 2, 0)
    if not np.isfinite(planes).all():
        raise UnreadableFile(f"{path}: holds values that are not finite numbers")
    return Volume(voxels=np.ascontiguousarray(planes[..., None]), affine=np.eye(4))


def read_mask(path: Path) -> NDArray[np.int64]:
    """A mask ``(rows, columns, 1)`` of stored values: palette indices, 0 and 1 of a bitmap, 8 and 16-bit numbers.

    Alpha is dropped, the EXIF orientation applied. A JPEG cannot hold numbers unharmed: it is cut at half its range to 0
    and 1. Raises UnreadableFile, and LabelError for colours or fractions.
    """
    picture = _open(path)
    if picture.mode not in ("1", "P", "PA", "L", "LA", "I", "F", *_DEEP_MODES):
        picture = _one_channel(picture, path)
    values = _values(picture)
    if values.ndim == 3:
        values = values[..., 0]
    if picture.mode == "F" and not (values == np.rint(values)).all():
        raise LabelError(f"{path}: holds values between whole numbers")
    whole = values.astype(np.int64)
    if whole.min(initial=0) < 0:
        raise LabelError(f"{path}: holds negative values; a label map counts from 0")
    if picture.format == "JPEG":
        whole = (whole >= _HALF).astype(np.int64)
    return whole[..., None]


def semantic(values: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Reduce a mask or instance map to one class: 1 where a value is above zero."""
    return (values > 0).astype(np.uint8)


def _one_channel(picture: Any, path: Path) -> Any:
    bands = [np.asarray(band) for band in _flat(picture).convert("RGB").split()]
    if not all((band == bands[0]).all() for band in bands[1:]):
        raise LabelError(f"{path}: a mask in colours; store the class or instance numbers in one channel")
    kept = picture.getchannel(0) if picture.mode in ("RGB", "RGBA") else picture.convert("L")
    kept.format = picture.format
    return kept


def _flat(picture: Any) -> Any:
    """Palette resolved and alpha dropped, so that hidden colours do not depend on the way of conversion."""
    return (
        picture.convert("RGBA").convert("RGB")
        if picture.mode in ("P", "PA", "LA", "RGBA", "La", "RGBa")
        else picture
    )


def _values(picture: Any) -> NDArray[Any]:
    return np.asarray(picture)


def _open(path: Path) -> Any:
    """The decoded picture, upright, with its file format kept."""
    from PIL import Image, ImageOps

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path) as file:
                pages, kind = getattr(file, "n_frames", 1), file.format
                picture: Any = ImageOps.exif_transpose(file)
                picture.load()
                picture.format = kind
    except Exception as error:
        raise UnreadableFile(
            f"{path}: not readable as a picture ({type(error).__name__}: {error})"
        ) from error
    if pages != 1:
        raise UnreadableFile(f"{path}: holds {pages} pages; expected one picture")
    return picture
