"""Text in the pixels: found by a network that finds text in pictures, blacked out, and looked for again.

Every image is looked at, for no header can be trusted to say whether something is burned in. The network is PP-OCR's detector as
the package rapidocr ships it; it runs on this machine and fetches nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from fedmed_client.data.pixels import decode
from fedmed_client.deidentify.header import NotDeidentified
from fedmed_common.errors import DataError

_TILE, _OVERLAP = 1536, 256
"""A picture is looked at in pieces of at most so many pixels, for the detector shrinks larger ones and loses small text."""
_SINGLE_FRAMES = 32
_MARGIN = 0.35
"""How far beyond a line of text is blacked out, as a share of its height."""
_ROUNDS = 4
_SURE, _LETTERS = 0.5, 2
"""From which score and number of letters on what is read counts as text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    """Where text is: rows and columns, the ends not included; ``is_sure``: the reader could read it too."""

    rows: tuple[int, int]
    columns: tuple[int, int]
    is_sure: bool


def black_out(dataset: Dataset) -> int:
    """Black out the text in an image's pixels, in place. How many lines were found; 0: the pixels are untouched.

    Raises:
        NotDeidentified: the pixels cannot be decoded, or there is still text after several rounds.
    """
    if not any(keyword in dataset for keyword in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        return 0
    try:
        frames = decode(dataset, source="image")
    except DataError as error:
        raise NotDeidentified(f"its pixels cannot be looked at for text: {error}") from error
    found = 0
    for _ in range(_ROUNDS):
        boxes = [box for picture in _pictures(frames) for box in text_in(picture)]
        if not any(box.is_sure for box in boxes):
            if found or _has_overlay_bits(dataset):
                _write(dataset, frames)
            return found
        if not found:
            frames = frames.copy()
        found += len(boxes)
        blank = _blank(dataset, frames)
        for box in boxes:
            frames[:, slice(*box.rows), slice(*box.columns)] = blank
    raise NotDeidentified(f"text in its pixels that {_ROUNDS} rounds of blacking out did not remove")


def text_in(picture: NDArray[np.uint8]) -> list[Box]:
    """The lines of text in a picture ``(rows, columns)`` or ``(rows, columns, 3)``."""
    colour = picture if picture.ndim == 3 else np.repeat(picture[..., None], 3, axis=2)
    return [box for top, left, tile in _tiles(colour) for box in _found(tile, top, left, picture.shape)]


def _found(tile: NDArray[np.uint8], top: int, left: int, shape: tuple[int, ...]) -> Iterator[Box]:
    result = _reader()(np.ascontiguousarray(tile), use_cls=False)
    boxes = getattr(result, "boxes", None)
    if boxes is None:
        return
    texts = getattr(result, "txts", None) or [""] * len(boxes)
    scores = getattr(result, "scores", None) or [0.0] * len(boxes)
    for corners, text, score in zip(boxes, texts, scores, strict=False):
        low, high = corners.min(axis=0), corners.max(axis=0)
        margin = _MARGIN * min(high - low) + 1
        (x0, y0), (x1, y1) = np.floor(low - margin), np.ceil(high + margin)
        letters = sum(character.isalnum() for character in text or "")
        yield Box(
            rows=(max(0, top + int(y0)), min(shape[0], top + int(y1))),
            columns=(max(0, left + int(x0)), min(shape[1], left + int(x1))),
            is_sure=letters >= _LETTERS and float(score) >= _SURE,
        )


def _tiles(colour: NDArray[np.uint8]) -> Iterator[tuple[int, int, NDArray[np.uint8]]]:
    rows, columns = colour.shape[:2]
    step = _TILE - _OVERLAP
    for top in range(0, max(1, rows - _OVERLAP), step):
        for left in range(0, max(1, columns - _OVERLAP), step):
            yield top, left, colour[top : top + _TILE, left : left + _TILE]


def _pictures(frames: NDArray[Any]) -> Iterator[NDArray[np.uint8]]:
    """What is looked at: each frame, or of many the brightest of some neighbours, in which text that stands shows all the same.

    Of more than eight bits there are two pictures, for text may be the brightest of all, or of the tissue's brightness beside a
    much brighter implant.
    """
    groups = np.array_split(np.arange(len(frames)), min(len(frames), _SINGLE_FRAMES))
    for group in groups:
        frame = frames[group].max(axis=0)
        yield _shown(frame, float(frame.min()), float(frame.max()))
        if frames.dtype.itemsize > 1:
            low, high = np.percentile(frame, (1, 99))
            yield _shown(frame, float(low), float(high))


def _shown(frame: NDArray[Any], low: float, high: float) -> NDArray[np.uint8]:
    scaled = (frame.astype(np.float32) - low) * (255 / max(high - low, 1e-9))
    return np.asarray(np.clip(scaled, 0, 255), np.uint8)


def _has_overlay_bits(dataset: Dataset) -> bool:
    """Whether an overlay may lie in the bits that the pixels leave free, as files before 2004 had it (PS3.5 8.1.1)."""
    return any(
        0x6000 <= tag.group <= 0x60FF and tag.element == 0x0102 and dataset[tag].value
        for tag in list(dataset.keys())
    )


def _blank(dataset: Dataset, frames: NDArray[Any]) -> Any:
    return frames.max() if dataset.get("PhotometricInterpretation") == "MONOCHROME1" else frames.min()


def _write(dataset: Dataset, frames: NDArray[Any]) -> None:
    colour = frames.ndim == 4
    if frames.dtype.kind == "f":
        raise NotDeidentified("text in pixels of floating-point numbers")
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
    try:
        from rapidocr import RapidOCR
    except ModuleNotFoundError as error:
        raise NotDeidentified(
            "text in pixels cannot be looked for: rapidocr is not installed\n  fix: pip install 'fedmed[deidentify]'"
        ) from error
    logging.getLogger("RapidOCR").setLevel(logging.ERROR)
    return RapidOCR()
