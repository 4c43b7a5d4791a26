"""Decode the frames of a DICOM SEG, also the one-bit encodings that pydicom leaves out."""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedmed_client.data.text import printable
from fedmed_common.errors import DecoderMissing, UnreadableFile

_RLE_LOSSLESS = "1.2.840.10008.1.2.5"
_DEFLATED_FRAMES = "1.2.840.10008.1.2.8.1"
_RLE_HEADER_BYTES = 64


def decode_frames(dataset: Any, indices: Sequence[int], path: Path) -> Iterator[NDArray[Any]]:
    """Stored values ``(rows, columns)`` of the frames asked for, one by one; ``indices`` ascend.

    Raises DecoderMissing, naming the transfer syntax, or UnreadableFile.
    """
    if not indices:
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield from _frames(dataset, indices)
    except Exception as error:
        _refuse_undecodable(dataset, path, error)
        detail = printable(f"{type(error).__name__}: {error}")[:300]
        raise UnreadableFile(f"{path}: its pixels cannot be decoded ({detail})") from error


def _frames(dataset: Any, indices: Sequence[int]) -> Iterator[NDArray[Any]]:
    from pydicom.pixels import iter_pixels

    syntax, one_bit = dataset.file_meta.TransferSyntaxUID, dataset.BitsAllocated == 1
    if syntax == _DEFLATED_FRAMES:
        return _compressed(dataset, indices, _inflate)
    if one_bit and syntax == _RLE_LOSSLESS:
        return _compressed(dataset, indices, _unpack_rle)
    if one_bit and not syntax.is_encapsulated:
        return (
            _packed_bits(dataset, indices)
            if syntax.is_little_endian
            else iter(dataset.pixel_array[list(indices)])
        )
    return iter_pixels(dataset, indices=list(indices), raw=True)  # type: ignore[no-any-return]


def _refuse_undecodable(dataset: Any, path: Path, error: Exception) -> None:
    from pydicom.pixels import get_decoder

    syntax = dataset.file_meta.get("TransferSyntaxUID")
    try:
        decoder = get_decoder(syntax or "")
    except (NotImplementedError, ValueError):
        return
    if syntax and not decoder.is_available:
        raise DecoderMissing(
            f"{path}: {printable(syntax.name)} needs another decoder\n  fix: pip install 'fedmed[decoders]'"
        ) from error


def _packed_bits(dataset: Any, indices: Sequence[int]) -> Iterator[NDArray[Any]]:
    """Frames follow each other bit by bit, low to high, and need not begin at a byte (PS3.5 8.1.1 and annex D)."""
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    data = np.frombuffer(dataset.PixelData, dtype=np.uint8)
    for index in indices:
        first_byte, shift = divmod(index * rows * columns, 8)
        stop = first_byte + (shift + rows * columns + 7) // 8
        bits = np.unpackbits(data[first_byte:stop], bitorder="little")
        yield bits[shift : shift + rows * columns].reshape(rows, columns)


def _compressed(
    dataset: Any, indices: Sequence[int], unpack: Callable[[bytes], bytes]
) -> Iterator[NDArray[Any]]:
    """Each frame is compressed by itself (PS3.5 A.4.2 and A.4.14) and begins at a byte."""
    from pydicom.encaps import generate_frames

    rows, columns, bits = int(dataset.Rows), int(dataset.Columns), int(dataset.BitsAllocated)
    frames = generate_frames(dataset.PixelData, number_of_frames=int(dataset.get("NumberOfFrames") or 1))
    wanted = set(indices)
    for compressed in (frame for number, frame in enumerate(frames) if number in wanted):
        data = unpack(compressed)
        if bits == 1:
            values = np.unpackbits(np.frombuffer(data, dtype=np.uint8), bitorder="little")
        else:
            values = np.frombuffer(data, dtype=np.dtype(f"<u{bits // 8}"))
        yield values[: rows * columns].reshape(rows, columns)


def _inflate(data: bytes) -> bytes:
    return zlib.decompressobj(-zlib.MAX_WBITS).decompress(data)


def _unpack_rle(data: bytes) -> bytes:
    """PackBits of PS3.5 annex G: n < 128 announces n + 1 literal bytes, n > 128 one byte 257 - n times."""
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
