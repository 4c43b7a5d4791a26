"""The slow change of brightness across an MR image that its coils make, estimated and divided out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedmed_common.config import Data
from fedmed_common.errors import ConfigError
from fedmed_common.intensities import foreground

_SHORTEST_MM = 4.0
_ITERATIONS = (50, 50, 30)
_LEAST_EDGE = 4


def simpleitk(field: str) -> Any:
    """The library that ``field`` of an experiment or a site needs.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import SimpleITK
    except ImportError:
        raise ConfigError("needs SimpleITK", field=field, fix="pip install 'fedmed[harmonise]'") from None
    return SimpleITK


@contextmanager
def one_thread() -> Iterator[None]:
    """Within, SimpleITK uses one: sums of several have no fixed order, and an image has to be prepared alike everywhere."""
    from SimpleITK import ProcessObject

    before = ProcessObject.GetGlobalDefaultNumberOfThreads()
    ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    try:
        yield
    finally:
        ProcessObject.SetGlobalDefaultNumberOfThreads(before)


def without_bias(
    image: NDArray[np.float32], spacing_mm: tuple[float, float, float], data: Data
) -> NDArray[np.float32]:
    """``(C, X, Y, Z)``: each channel that ``data.bias_correction`` means over its bias field, by N4 on voxels of about 4 mm; a
    picture of one slice in two dimensions.

    Source: Tustison et al. 2010, 'N4ITK: improved N3 bias correction', IEEE TMI 29, section II, as SimpleITK has it.

    Raises:
        ConfigError: SimpleITK is not installed.
    """
    asked = data.bias_correction
    wanted = [
        asked is True or (asked is not False and name in asked)
        for name in data.modalities or [""] * len(image)
    ]
    if not any(wanted):
        return image
    sitk = simpleitk("data.bias_correction")
    flat = image.shape[3] == 1
    result = np.array(image, np.float32)
    for channel, values in enumerate(image):
        mask = foreground(image[channel : channel + 1])
        if not wanted[channel] or not mask.any() or not np.ptp(values):
            continue
        low = float(values.min())
        positive = values - low + 1.0
        whole, where = (
            sitk.GetImageFromArray(part[..., 0].T if flat else part.T)
            for part in (positive, mask.astype(np.uint8))
        )
        whole.SetSpacing(spacing_mm[: whole.GetDimension()])
        where.CopyInformation(whole)
        factors = [
            max(1, min(round(_SHORTEST_MM / length), count // _LEAST_EDGE))
            for length, count in zip(whole.GetSpacing(), whole.GetSize(), strict=True)
        ]
        with one_thread():
            correct = sitk.N4BiasFieldCorrectionImageFilter()
            correct.SetMaximumNumberOfIterations(_ITERATIONS)
            correct.Execute(sitk.Shrink(whole, factors), sitk.Shrink(where, factors))
            field = np.exp(sitk.GetArrayFromImage(correct.GetLogBiasFieldAsImage(whole))).T
        result[channel] = positive / (field[..., None] if flat else field) + (low - 1.0)
    return result
