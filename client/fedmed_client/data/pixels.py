"""From stored pixels to values: decoding, sign, colour, rescale, inversion, padding."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.pixels import apply_color_lut, apply_modality_lut, get_decoder, pixel_array
from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from fedmed_client.data.text import printable
from fedmed_common.errors import DecoderMissing, UnreadableFile

_PLUGINS = ("pylibjpeg", "pyjpegls", "pillow")
"""Of pydicom's, by which images are decoded, the most able first."""
_log = logging.getLogger(__name__)

QUANTITIES = ("CT", "PT", "NM")
"""Modalities whose values are measurements: MONOCHROME1 tells how to show them, not what they are."""


def decode(dataset: Dataset, *, source: str) -> NDArray[Any]:
    """Stored pixels ``(frames, rows, columns)``, or ``(frames, rows, columns, 3)`` as RGB.

    Raises DecoderMissing when an optional decoder could read the transfer syntax, UnreadableFile otherwise.
    """
    syntax = _transfer_syntax(dataset)
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError as error:
        name = printable(syntax.name)
        raise UnreadableFile(
            f"{source}: images in transfer syntax {name} cannot be read: convert them"
        ) from error
    if not decoder.is_available:
        raise _missing(syntax, source)
    frames, rows, columns = (int(dataset.get(k) or 1) for k in ("NumberOfFrames", "Rows", "Columns"))
    samples = int(dataset.get("SamplesPerPixel") or 1)
    try:
        stored = _decoded(dataset, decoder.available_plugins)
    except Exception as error:
        if decoder.missing_dependencies and syntax.is_encapsulated:
            raise _missing(syntax, source) from error
        raise UnreadableFile(f"{source}: its pixels cannot be decoded: {_one_line(error)}") from error
    shape = (frames, rows, columns) if samples == 1 else (frames, rows, columns, samples)
    if stored.size != np.prod(shape) or samples not in (1, 3):
        raise UnreadableFile(f"{source}: declares pixels of shape {shape}, but holds {stored.shape}")
    stored = stored.reshape(shape)
    if dataset.get("PhotometricInterpretation") == "PALETTE COLOR":
        return np.asarray(apply_color_lut(stored, dataset))[..., :3]
    return stored if samples == 3 or stored.dtype.kind == "f" else _significant_bits(stored, dataset)


def values(
    stored: NDArray[Any], dataset: Dataset, rescale: tuple[float, float] | None
) -> NDArray[np.float32]:
    """One frame's values, float32, same shape; padding is NaN until `fill_padding` sees the whole volume.

    MONOCHROME1 is turned to MONOCHROME2 within the range of the stored bits, but not for `QUANTITIES`. Then comes
    the modality LUT, or slope and intercept (those of the frame where it has its own). Colour and floating-point
    pixels stay as they are stored.
    """
    if stored.ndim == 3:
        return stored.astype(np.float32)
    padding = _padding(stored, dataset)
    if stored.dtype.kind != "f":
        if (
            dataset.get("PhotometricInterpretation") == "MONOCHROME1"
            and dataset.get("Modality") not in QUANTITIES
        ):
            stored = (
                ~stored
                if dataset.PixelRepresentation
                else (1 << _bits(dataset)) - 1 - stored.astype(np.int64)
            )
        if rescale is not None:
            stored = stored * rescale[0] + rescale[1]
        elif dataset.get("ModalityLUTSequence"):
            stored = apply_modality_lut(stored, dataset)
    result: NDArray[np.float32] = stored.astype(np.float32)
    if padding is not None:
        result[padding] = np.nan
    return result


def fill_padding(voxels: NDArray[np.float32]) -> None:
    """Give padding, in place, the smallest value of the rest of the volume, or 0 where all is padding."""
    padding = np.isnan(voxels)
    if padding.any():
        smallest = np.fmin.reduce(voxels, axis=None)
        voxels[padding] = 0 if np.isnan(smallest) else smallest


def _decoded(dataset: Dataset, available: Sequence[str]) -> NDArray[Any]:
    """By the first plugin that can; GDCM only where there is no other, for at some broken JPEG it ends the process."""
    order = [plugin for plugin in _PLUGINS if plugin in available]
    order += [plugin for plugin in available if plugin not in (*_PLUGINS, "gdcm")]
    *first, last = order or available or ("",)
    for plugin in first:
        try:
            return np.asarray(pixel_array(dataset, decoding_plugin=plugin))
        except Exception as error:
            _log.debug("%s does not decode it: %s", plugin, type(error).__name__)
    return np.asarray(pixel_array(dataset, decoding_plugin=last))


def _transfer_syntax(dataset: Dataset) -> UID:
    """The declared one; a file without meta header has one of the three that need no declaration."""
    declared = dataset.file_meta.get("TransferSyntaxUID")
    if declared:
        return UID(declared)
    implicit, little = dataset.original_encoding
    plain = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian if little else ExplicitVRBigEndian
    dataset.file_meta.TransferSyntaxUID = plain
    return UID(plain)


def _missing(syntax: UID, source: str) -> DecoderMissing:
    name = printable(syntax.name)
    return DecoderMissing(f"{source}: {name} needs another decoder\n  fix: pip install 'fedmed[decoders]'")


def _one_line(error: Exception) -> str:
    return printable(" ".join(str(error).split()) or type(error).__name__)[:300]


def _bits(dataset: Dataset) -> int:
    return int(dataset.get("BitsStored") or dataset.BitsAllocated)


def _significant_bits(stored: NDArray[Any], dataset: Dataset) -> NDArray[Any]:
    """Drop what lies outside BitsStored (overlays, once) and extend the sign (DICOM PS3.5 8.1.1)."""
    width = stored.dtype.itemsize * 8
    high = int(dataset.get("HighBit", _bits(dataset) - 1))
    if not _bits(dataset) <= high + 1 <= width or _bits(dataset) == width:
        return stored
    return (stored << (width - 1 - high)) >> (width - _bits(dataset))


def _padding(stored: NDArray[Any], dataset: Dataset) -> NDArray[np.bool_] | None:
    limits = [dataset.get("PixelPaddingValue"), dataset.get("PixelPaddingRangeLimit")]
    if limits[0] in (None, "") or stored.dtype.kind == "f":
        return None
    signed = [_as_stored(int(limit), stored.dtype) for limit in limits if limit not in (None, "")]
    mask: NDArray[np.bool_] = (stored >= min(signed)) & (stored <= max(signed))
    return mask


def _as_stored(value: int, dtype: np.dtype[Any]) -> int:
    """Padding of signed pixels is at times written unsigned, and the other way round."""
    width = dtype.itemsize * 8
    value &= (1 << width) - 1
    return value - (1 << width) if dtype.kind == "i" and value >> (width - 1) else value
