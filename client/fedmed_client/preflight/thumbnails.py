"""Images with the outlines of labels, as small pictures."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from fedmed_client.data.preprocess import finite, reorient
from fedmed_client.data.volume import Volume

_SIDE = 160
_TILE, _TILES, _ACROSS = 260, 6, 3
_COLOURS = ((255, 99, 71), (64, 200, 120), (80, 150, 255), (250, 200, 60), (220, 120, 240), (90, 220, 220))


def is_picture(volume: Volume) -> bool:
    """Whether it is a picture without a place in the body, ``(C, rows, columns, 1)``."""
    scale = np.diag(np.diag(volume.affine))
    return volume.shape[2] == 1 and np.array_equal(volume.affine, scale) and bool((np.diag(scale) > 0).all())


def thumbnail(grey: NDArray[np.float32], label: NDArray[np.uint8], *, picture: bool = False) -> bytes:
    """PNG of the slice that shows most labels. ``grey``, ``label``: ``(X, Y, Z)`` along right, anterior, superior, shown from
    below as radiologists look at it; of a ``picture`` ``(rows, columns, 1)``."""
    depth = int((label > 0).sum(axis=(0, 1)).argmax()) if label.any() else grey.shape[2] // 2
    shown = _slice(grey, label, depth, picture=picture)
    shown.thumbnail((_SIDE, _SIDE))
    return _png(shown)


def montage(volume: Volume, label: NDArray[np.uint8]) -> bytes:
    """PNG of some slices with the labels' outlines, spread over the part that shows any. ``label``: on the volume's voxels."""
    picture = is_picture(volume)
    there = [channel for channel in volume.voxels if not np.isnan(channel).all()]
    image, marks = finite(np.stack(there)), label
    if not picture:
        image, marks, _ = reorient(image, label, volume.affine)
    grey = image.mean(axis=0)
    shown = np.flatnonzero((marks > 0).any(axis=(0, 1)))
    first, last = (int(shown[0]), int(shown[-1])) if shown.size else (0, grey.shape[2] - 1)
    depths = np.unique(np.linspace(first, last, _TILES).round().astype(int))
    tiles = []
    for depth in depths:
        tile = _slice(grey, marks, int(depth), picture=picture)
        tile.thumbnail((_TILE, _TILE))
        tiles.append(tile)
    columns = min(len(tiles), _ACROSS)
    rows = -(-len(tiles) // columns)
    width, height = max(tile.width for tile in tiles), max(tile.height for tile in tiles)
    sheet = Image.new("RGB", (columns * width, rows * height))
    for number, tile in enumerate(tiles):
        sheet.paste(tile, (number % columns * width, number // columns * height))
    return _png(sheet)


def colour_of(number: int) -> str:
    """In which a class is outlined, as CSS has it."""
    red, green, blue = _COLOURS[(number - 1) % len(_COLOURS)]
    return f"#{red:02x}{green:02x}{blue:02x}"


def _slice(grey: NDArray[np.float32], label: NDArray[np.uint8], depth: int, *, picture: bool) -> Image.Image:
    plane, marks = grey[..., depth], label[..., depth]
    low, high = np.percentile(plane, (1, 99))
    shown = np.clip((plane - low) * (255 / max(float(high - low), 1e-9)), 0, 255).astype(np.uint8)
    colour = np.repeat(shown[..., None], 3, axis=2)
    for number in np.unique(marks[marks > 0]):
        mask = marks == number
        colour[mask & ~ndimage.binary_erosion(mask)] = _COLOURS[(int(number) - 1) % len(_COLOURS)]
    return Image.fromarray(np.ascontiguousarray(colour if picture else colour[::-1, ::-1].transpose(1, 0, 2)))


def _png(picture: Image.Image) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, format="PNG", optimize=True)
    return stream.getvalue()
