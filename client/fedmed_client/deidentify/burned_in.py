"""Text in the pixels: found by a network that finds text in pictures, blacked out, and looked for again.

Every image is looked at, for no header can be trusted to say whether something is burned in. The network is PP-OCR's detector as
the package rapidocr ships it; it runs on this machine and fetches nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import UID

from fedmed_client.data.pixels import decode
from fedmed_client.deidentify.header import NotDeidentified
from fedmed_common.errors import ConfigError, DataError

_TILE, _OVERLAP = 1536, 256
"""A picture is looked at in pieces of at most so many pixels, for the detector shrinks larger ones and loses small text."""
_SINGLE_FRAMES = 32
_MARGIN = 0.35
"""How far beyond a line of text is blacked out, as a share of its height."""
_TALLEST, _TALLEST_PIXELS = 0.12, 40
"""What is higher than this share of the picture, and than so many pixels, is no line of text but an outline like a letter's."""
_ROUNDS = 4
_READ, _LETTERS, _SEEN = 0.5, 2, 0.7
"""What is read with this score and so many letters is text; in pictures that often have some, also what only looks like it, from
this score of the detector on."""
_PROSE = frozenset({"CR", "DX", "ES", "GM", "IO", "MG", "OP", "OT", "PX", "RF", "RG", "SC", "US", "XA", "XC"})
"""Modalities whose pictures often have text, printed or written by hand."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    """Where text is: rows and columns, the ends not included. ``is_sure``: it is reason enough to look once more."""

    rows: tuple[int, int]
    columns: tuple[int, int]
    is_sure: bool


def clean_pixels(dataset: Dataset, *, look_for_text: bool = True) -> int:
    """Write an image's pixels anew, in place, without what lies beside them (comments of a compressed stream, bytes behind the
    last frame, bits that hold an overlay), and black out text. How many lines of text were found.

    Pixels come out uncompressed, with the same values; of a palette, as the colours that it stands for.

    Raises:
        NotDeidentified: the pixels cannot be decoded, or there is still text after several rounds.
    """
    if not any(keyword in dataset for keyword in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        return 0
    try:
        frames = decode(dataset, source="image")
    except DataError as error:
        raise NotDeidentified(f"its pixels cannot be looked at: {error}") from error
    found, frames = _without_text(dataset, frames) if look_for_text else (0, frames)
    _write(dataset, frames, changed=bool(found))
    return found


def _without_text(dataset: Dataset, frames: NDArray[Any]) -> tuple[int, NDArray[Any]]:
    prose = dataset.get("Modality") in _PROSE or "Secondary Capture" in UID(str(dataset.SOPClassUID)).name
    found = 0
    for _ in range(_ROUNDS):
        boxes = [box for picture in _pictures(frames) for box in text_in(picture, prose=prose)]
        if not any(box.is_sure for box in boxes):
            return found, frames
        if not found:
            frames = frames.copy()
        found += len(boxes)
        blank = _blank(dataset, frames)
        for box in boxes:
            frames[:, slice(*box.rows), slice(*box.columns)] = blank
    raise NotDeidentified(f"text in its pixels that {_ROUNDS} rounds of blacking out did not remove")


def require_reader() -> None:
    """Nothing, where text can be looked for.

    Raises:
        ConfigError: what looks for it is not installed.
    """
    if find_spec("rapidocr") is None or find_spec("onnxruntime") is None:
        raise ConfigError(
            "text in pixels cannot be looked for: rapidocr is not installed",
            fix="pip install 'fedmed[deidentify]', or leave it out with --no-text",
        )


def text_in(picture: NDArray[np.uint8], *, prose: bool = True) -> list[Box]:
    """The lines of text in a picture ``(rows, columns)`` or ``(rows, columns, 3)``. ``prose``: what looks like text is some, also
    where it cannot be read."""
    colour = picture if picture.ndim == 3 else np.repeat(picture[..., None], 3, axis=2)
    return [
        box
        for top, left, tile in _tiles(colour)
        for box in _found(tile, (top, left), picture.shape, prose=prose)
    ]


def _found(
    tile: NDArray[np.uint8], corner: tuple[int, int], shape: tuple[int, ...], *, prose: bool
) -> Iterator[Box]:
    """Finding is quick; what was found is read only where it matters."""
    tile = np.ascontiguousarray(tile)
    seen = _reader()(tile, use_det=True, use_cls=False, use_rec=False)
    if seen.boxes is None or not len(seen.boxes):
        return
    read = None if prose else _reader()(tile, use_det=True, use_cls=True, use_rec=True, text_score=0.0)
    texts = _texts(read)
    for corners, score in zip(seen.boxes, seen.scores, strict=True):
        low, high = corners.min(axis=0), corners.max(axis=0)
        if min(high - low) > max(_TALLEST_PIXELS, _TALLEST * min(shape[:2])):
            continue
        margin = _MARGIN * min(high - low) + 1
        (x0, y0), (x1, y1) = np.floor(low - margin), np.ceil(high + margin)
        if prose or any(_inside(place, low, high) for place in texts):
            yield Box(
                rows=(max(0, corner[0] + int(y0)), min(shape[0], corner[0] + int(y1))),
                columns=(max(0, corner[1] + int(x0)), min(shape[1], corner[1] + int(x1))),
                is_sure=not prose or float(score) >= _SEEN,
            )


def _texts(read: Any) -> list[NDArray[np.float32]]:
    """The middles of the lines that could be read."""
    if read is None or getattr(read, "txts", None) is None:
        return []
    return [
        corners.mean(axis=0)
        for corners, text, score in zip(read.boxes, read.txts, read.scores, strict=True)
        if sum(character.isalnum() for character in text or "") >= _LETTERS and float(score) >= _READ
    ]


def _inside(place: NDArray[np.float32], low: NDArray[np.float32], high: NDArray[np.float32]) -> bool:
    return bool((place >= low).all() and (place <= high).all())


def _tiles(colour: NDArray[np.uint8]) -> Iterator[tuple[int, int, NDArray[np.uint8]]]:
    rows, columns = colour.shape[:2]
    step = _TILE - _OVERLAP
    for top in range(0, max(1, rows - _OVERLAP), step):
        for left in range(0, max(1, columns - _OVERLAP), step):
            yield top, left, colour[top : top + _TILE, left : left + _TILE]


def _pictures(frames: NDArray[Any]) -> Iterator[NDArray[np.uint8]]:
    """What is looked at: each frame, or of many the brightest and the darkest of some neighbours, in which text that stands
    shows all the same.

    Of more than eight bits there are two pictures, for text may be the brightest of all, or of the tissue's brightness beside a
    much brighter implant.
    """
    groups = np.array_split(np.arange(len(frames)), min(len(frames), _SINGLE_FRAMES))
    both = [(numbers, combine) for numbers in groups for combine in (np.max, np.min)[: len(numbers)]]
    for group, combine in both:
        frame = combine(frames[group], axis=0)
        yield _shown(frame, float(frame.min()), float(frame.max()))
        if frames.dtype.itemsize > 1:
            low, high = np.percentile(frame, (1, 99))
            yield _shown(frame, float(low), float(high))


def _shown(frame: NDArray[Any], low: float, high: float) -> NDArray[np.uint8]:
    scaled = (frame.astype(np.float32) - low) * (255 / max(high - low, 1e-9))
    return np.asarray(np.clip(scaled, 0, 255), np.uint8)


def _blank(dataset: Dataset, frames: NDArray[Any]) -> Any:
    return frames.max() if dataset.get("PhotometricInterpretation") == "MONOCHROME1" else frames.min()


def _write(dataset: Dataset, frames: NDArray[Any], *, changed: bool) -> None:
    colour = frames.ndim == 4
    if frames.dtype.kind == "f" or frames.dtype.itemsize > 2:
        if changed:
            raise NotDeidentified("text in pixels of more than sixteen bits")
        return
    interpretation = "RGB" if colour else str(dataset.get("PhotometricInterpretation"))
    for tag in [
        tag for tag in list(dataset.keys()) if tag.group == 0x0028 and 0x1101 <= tag.element <= 0x1223
    ]:
        del dataset[tag]
    bits = 8 * frames.dtype.itemsize if colour else int(dataset.BitsStored)
    shown = frames if int(dataset.get("NumberOfFrames") or 1) > 1 else frames[0]
    dataset.set_pixel_data(shown, interpretation, bits, generate_instance_uid=False)


@cache
def _reader() -> Any:
    require_reader()
    from rapidocr import RapidOCR

    logging.getLogger("RapidOCR").setLevel(logging.ERROR)
    return RapidOCR()
