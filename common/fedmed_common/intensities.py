"""Where an image is not empty, and by which of its intensities it is compared with others."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

FOREGROUND_PERCENT = 5.0
"""A voxel this far above the darkest, in percent of the robust range, is no longer empty surroundings."""
ROBUST_PERCENTILES = (0.5, 99.5)
ENDS = (1.0, 99.0)
"""Percentiles of the foreground that become 0 and 1 on a standard scale."""
DECILES = tuple(10.0 * part for part in range(1, 10))
"""Percentiles of the foreground whose places on a standard scale are its landmarks."""
_STATISTICS_VOXELS = 1_000_000
_LEAST = 1e-6


def foreground(image: NDArray[np.float32]) -> NDArray[np.bool_]:
    """``(X, Y, Z)`` of an image ``(C, X, Y, Z)``: where any channel is brighter than the empty surroundings."""
    low, high = np.percentile(some(image), ROBUST_PERCENTILES)
    mask: NDArray[np.bool_] = (image > low + FOREGROUND_PERCENT / 100 * (high - low)).any(axis=0)
    return mask


def landmarks(image: NDArray[np.float32]) -> NDArray[np.float64]:
    """``(C, 11)``: the percentiles of each channel's foreground at the ends and the deciles, increasing, in the image's units.

    Source: Nyul and Udupa 1999, 'On standardizing the MR image intensity scale', MRM 42, with the deciles of Shah et al. 2011.
    """
    mask = foreground(image)
    found = []
    for channel in image:
        inside = channel[mask] if mask.any() else channel.ravel()
        found.append(np.percentile(some(inside), (ENDS[0], *DECILES, ENDS[1])))
    return np.array(found)


def on_scale(found: NDArray[np.float64]) -> NDArray[np.float64]:
    """``(C, 9)``: where the deciles of :func:`landmarks` lie, 0 to 1, between the ends."""
    low, high = found[:, :1], found[:, -1:]
    return np.asarray((found[:, 1:-1] - low) / np.maximum(high - low, _LEAST))


def some(values: NDArray[Any]) -> NDArray[Any]:
    """Every n-th value: enough for percentiles of any image."""
    flat = values.reshape(-1)
    return flat[:: max(1, flat.size // _STATISTICS_VOXELS)]
