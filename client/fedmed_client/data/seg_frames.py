"""Decode the frames of a DICOM SEG, also the one-bit encodings that pydicom leaves out."""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedmed_common.errors import DecoderMissing, UnreadableFile

_RLE_LOSSLESS = "1.2.840.10008.1.2.5"
_DEFLATED_FRAMES = "1.2.840.10008.1.2.8.1"
_RLE_HEADER_BYTES = 64


def decode_frames(dataset: Any, indices: Sequence[int], path: Path) -> Iterator[NDArray[Any]]:
    """Stored values ``(rows, columns)`` of the frames asked for, one by one.

    Raises DecoderMissing, naming the transfer syntax, or UnreadableFile.
    """
    if not indices:
        return
    syntax = dataset.file_meta.get("TransferSyntaxUID") if hasattr(dataset, "file_meta") else None
    own = syntax == _DEFLATED_FRAMES or (syntax == _RLE_LOSSLESS and dataset.BitsAllocated == 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield from _own_frames(dataset, indices, syntax) if own else _pydicom_frames(dataset, indices)
    except Exception as error:
        _refuse_undecodable(syntax, path, error)
        raise UnreadableFile(
            f"{path}: its pixels cannot be decoded ({type(error).__name__}: {error})"
        ) from error


def _refuse_undecodable(syntax: Any, path: Path, error: Exception) -> None:
    from pydicom.pixels import get_decoder

    try:
        decoder = get_decoder(syntax)
    except (NotImplementedError, TypeError):
        return
    if syntax.is_encapsulated and not decoder.is_available:
        raise DecoderMissing(
            f"{path}: pixels are stored as '{syntax.name}', which needs another package\n"
            "  fix: pip install 'fedmed[decoders]'"
        ) from error


def _pydicom_frames(dataset: Any, indices: Sequence[int]) -> Iterator[NDArray[Any]]:
    from pydicom.pixels import iter_pixels

    yield from iter_pixels(dataset, indices=indices, raw=True)


def _own_frames(dataset: Any, indices: Sequence[int], syntax: Any) -> Iterator[NDArray[Any]]:
    """RLE of packed bits (PS3.5 annex G) and deflated frames (PS3.5 A.4.14): each frame by itself, bits low to high."""
    from pydicom.encaps import generate_frames

    wanted, last = set(indices), max(indices)
    packed: dict[int, bytes] = {}
    for number, data in enumerate(
        generate_frames(dataset.PixelData, number_of_frames=int(dataset.get("NumberOfFrames", 1)))
    ):
        if number in wanted:
            packed[number] = (
                zlib.decompressobj(-zlib.MAX_WBITS).decompress(data)
                if syntax == _DEFLATED_FRAMES
                else _unpack_rle(data)
            )
        if number == last:
            break
    for index in indices:
        yield _as_pixels(packed[index], dataset)


def _as_pixels(data: bytes, dataset: Any) -> NDArray[Any]:
    rows, columns, bits = int(dataset.Rows), int(dataset.Columns), int(dataset.BitsAllocated)
    count = rows * columns
    if bits == 1:
        values = np.unpackbits(np.frombuffer(data, dtype=np.uint8), count=count, bitorder="little")
    else:
        values = np.frombuffer(data, dtype=np.dtype(f"<u{bits // 8}"), count=count)
    return values.reshape(rows, columns)


def _unpack_rle(data: bytes) -> bytes:
    """PackBits: a head byte n < 128 announces n + 1 literal bytes, n > 128 one byte 257 - n times."""
    out = bytearray()
    position = _RLE_HEADER_BYTES
    while position + 1 < len(data):
        head = data[position]
        position += 1
        if head < 128:
            out += data[position : position + head + 1]
            position += head + 1
        elif head > 128:
            out += data[position : position + 1] * (257 - head)
            position += 1
    return bytes(out)
