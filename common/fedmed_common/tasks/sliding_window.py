"""Inference on images of any size, window by window, in memory that does not grow with the longest axis."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise, product
from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedmed_common.monai_import import load_monai

Triple = tuple[int, int, int]
Predictor = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Windows:
    """How an image is seen: windows ``size`` large, of which neighbours share ``overlap``; ``voxels_at_once`` bounds a batch."""

    size: Triple
    classes: int
    overlap: float
    voxels_at_once: int


def sliding_argmax(
    predictor: Predictor, image_CXYZ: NDArray[np.float32], windows: Windows, device: torch.device | str
) -> NDArray[np.uint8]:
    """The most likely class of each voxel, ``(X, Y, Z)``.

    ``predictor`` maps ``(B, C, *size)`` on ``device`` to logits ``(B, classes, *size)``. Windows lie, and their logits are
    blended by a Gaussian, as in ``monai.inferers.sliding_window_inference``; here they advance along x, and what they have left
    behind is decided at once, so that the logits held are those of one window's width. An image smaller than the window gets
    zeros around it.
    """
    padded, inside = _pad(image_CXYZ, windows.size)
    result = np.empty(padded.shape[1:], np.uint8)
    for columns, logits, _ in _advance(predictor, padded, windows, device):
        result[columns] = logits.argmax(0).to(torch.uint8).cpu().numpy()
    return result[inside]


def sliding_probabilities(
    predictor: Predictor, image_CXYZ: NDArray[np.float32], windows: Windows, device: torch.device | str
) -> NDArray[np.float32]:
    """The classes' probabilities ``(classes, X, Y, Z)``, of the logits that ``sliding_argmax`` decides by; all are held."""
    padded, inside = _pad(image_CXYZ, windows.size)
    result = np.empty((windows.classes, *padded.shape[1:]), np.float32)
    for columns, logits, weights in _advance(predictor, padded, windows, device):
        result[:, columns] = (logits / weights).softmax(0).cpu().numpy()
    return result[:, *inside]


@torch.inference_mode()
def _advance(
    predictor: Predictor, padded_CXYZ: NDArray[np.float32], windows: Windows, device: torch.device | str
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Along x: which columns are done, the weighted sum of their logits ``(classes, x, Y, Z)``, and that of weights."""
    window, shape = windows.size, padded_CXYZ.shape[1:]
    starts_x, starts_y, starts_z = (
        _starts(*axis, windows.overlap) for axis in zip(shape, window, strict=True)
    )
    columns = list(product(starts_y, starts_z))
    at_once = max(1, windows.voxels_at_once // prod(window))
    weight = _gaussian(window).to(device)
    # The last channel sums the weights.
    held = torch.zeros(windows.classes + 1, window[0], *shape[1:], device=device)
    for x, following in pairwise([*starts_x, shape[0]]):
        for first in range(0, len(columns), at_once):
            places = columns[first : first + at_once]
            crops = np.stack([padded_CXYZ[:, *_cut((x, y, z), window)] for y, z in places])
            outputs = predictor(torch.from_numpy(crops).to(device))
            for (y, z), output in zip(places, outputs, strict=True):
                here = held[:, *_cut((0, y, z), window)]
                here[:-1] += output * weight
                here[-1] += weight
        done = following - x
        yield slice(x, following), held[:-1, :done], held[-1, :done]
        held = torch.cat([held[:, done:], torch.zeros_like(held[:, :done])], dim=1)


def _pad(image_CXYZ: NDArray[Any], window: Triple) -> tuple[NDArray[Any], tuple[slice, ...]]:
    """At least a window large; and where the image lies in it."""
    shape = image_CXYZ.shape[1:]
    missing = [max(0, wanted - size) for size, wanted in zip(shape, window, strict=True)]
    inside = tuple(slice(gap // 2, gap // 2 + size) for gap, size in zip(missing, shape, strict=True))
    if not any(missing):
        return image_CXYZ, inside
    return np.pad(image_CXYZ, [(0, 0), *((gap // 2, gap - gap // 2) for gap in missing)]), inside


def _starts(size: int, width: int, overlap: float) -> list[int]:
    """Where windows begin on an axis; the last one is moved back to end with the image."""
    interval = max(1, int(width * (1 - overlap)))
    last = size - width
    return [*range(0, last, interval), last]


def _cut(start: Triple, window: Triple) -> tuple[slice, ...]:
    return tuple(slice(begin, begin + width) for begin, width in zip(start, window, strict=True))


def _gaussian(window: Triple) -> Tensor:
    load_monai()
    from monai.data.utils import compute_importance_map

    extent = [width for width in window if width > 1] or [1]
    importance: Tensor = compute_importance_map(extent, mode="gaussian", sigma_scale=0.125)
    return importance.reshape(window)
