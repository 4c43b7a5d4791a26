"""Images of several modalities joined into one by their wavelets."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fedmed_common.config import Fusion
from fedmed_common.errors import ConfigError

Image = NDArray[np.float32]


def fused(images: Sequence[Image], fusion: Fusion) -> Image:
    """One image ``(X, Y, Z)`` of several: of their coarsest coefficients the mean, of each finer one the largest in size.

    Source: Li, Manjunath and Mitra 1995, 'Multisensor image fusion using the wavelet transform', Graphical Models and Image
    Processing 57, section 3, with the mean of approximations as is usual since. One image stays as it is.

    Raises:
        ConfigError: PyWavelets is not installed.
    """
    try:
        import pywt
    except ImportError:
        raise ConfigError(
            "needs PyWavelets", field="data.fusion", fix="pip install 'fedmed[harmonise]'"
        ) from None
    if len(images) == 1:
        return images[0]
    axes = tuple(axis for axis, size in enumerate(images[0].shape) if size > 1)
    most = min(pywt.dwtn_max_level([images[0].shape[axis] for axis in axes], fusion.wavelet), fusion.levels)
    parts = [pywt.wavedecn(image, fusion.wavelet, level=most, axes=axes) for image in images]
    joined = [np.mean([part[0] for part in parts], axis=0)]
    for level in range(1, most + 1):
        joined.append({name: _largest([part[level][name] for part in parts]) for name in parts[0][level]})
    whole = pywt.waverecn(joined, fusion.wavelet, axes=axes)
    return np.asarray(whole[tuple(slice(size) for size in images[0].shape)], np.float32)


def _largest(coefficients: Sequence[Image]) -> Image:
    """At each place the coefficient of the largest size; of equal ones the first's."""
    stacked = np.stack(coefficients)
    chosen = np.abs(stacked).argmax(axis=0)
    return np.asarray(np.take_along_axis(stacked, chosen[None], axis=0)[0])
