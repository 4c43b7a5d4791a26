"""Encoded arrays as one Zstandard frame. The bytes of equal weight of all numbers go side by side, which compresses better."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import zstandard
from numpy.typing import NDArray

from fedmed_common.errors import WireError

SQUEEZED = "/zstd"
_LEVEL = 3
_FRAME = 512
Arrays = Mapping[str, NDArray[Any]]


def squeeze(arrays: Arrays) -> dict[str, NDArray[np.uint8]]:
    """The arrays as one, of bytes."""
    planes = b"".join(_planes(array) for array in arrays.values())
    frame = zstandard.ZstdCompressor(level=_LEVEL).compress(planes)
    return {SQUEEZED: np.frombuffer(frame, np.uint8)}


def unsqueeze(sent: Arrays, forms: Arrays) -> dict[str, NDArray[Any]]:
    """The arrays in the frame, whose shapes and types are those of ``forms``. No more memory is taken than they need.

    Raises:
        WireError: the frame does not hold such arrays.
    """
    size = sum(array.nbytes for array in forms.values())
    if list(sent) != [SQUEEZED] or sent[SQUEEZED].dtype != np.uint8:
        raise WireError("squeezed arrays")
    frame = sent[SQUEEZED].tobytes()
    try:
        if zstandard.frame_content_size(frame) != size:
            raise WireError("squeezed arrays")
        planes = np.frombuffer(zstandard.ZstdDecompressor().decompress(frame, max_output_size=size), np.uint8)
    except zstandard.ZstdError:
        raise WireError("squeezed arrays") from None
    if planes.size != size:
        raise WireError("squeezed arrays")
    arrays, first = dict[str, NDArray[Any]](), 0
    for name, form in forms.items():
        part = planes[first : first + form.nbytes].reshape(form.itemsize, -1)
        arrays[name] = np.ascontiguousarray(part.T).view(form.dtype).reshape(form.shape)
        first += form.nbytes
    return arrays


def bound(forms: Arrays) -> dict[str, NDArray[np.uint8]]:
    """An array that is as long as a frame of such arrays can become, and takes no memory."""
    size = sum(array.nbytes for array in forms.values())
    return {SQUEEZED: np.broadcast_to(np.uint8(0), (size + size // 256 + _FRAME,))}


def _planes(array: NDArray[Any]) -> bytes:
    flat = np.ascontiguousarray(array).reshape(-1)
    return flat.view(np.uint8).reshape(flat.size, array.itemsize).T.tobytes()
