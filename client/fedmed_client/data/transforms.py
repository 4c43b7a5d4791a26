"""Augmentation of patches, with MONAI's transforms.

none: nothing. light: brightness and contrast by up to 10 percent, and mirroring of photographs. standard: light, and
now and then a small rotation and scaling, gamma and noise.

A photograph of cells or of a retina may be mirrored along both axes without becoming another anatomy. A volume is
never mirrored: its axes point right, anterior and superior, left and right kidney are different classes, and a
mirrored liver lies on the wrong side. For the same reason rotation stays within 10 degrees, in 3D about the long axis
of the body only, where voxels are square.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from fedmed_common.monai_import import load_monai

Level = Literal["none", "light", "standard"]
_BOTH = ("image", "label")
_ROTATION = np.deg2rad(10.0)


class Augmentation:
    """Changes one patch in place; the same patch and seed always give the same result, in any thread.

    MONAI's transforms keep what they have drawn, so that each thread at work has some of its own.
    """

    def __init__(self, level: Literal["light", "standard"], patch: tuple[int, ...]) -> None:
        self._level, self._patch = level, patch
        self._idle = [_Transforms(level, patch)]

    def __call__(
        self, image: NDArray[np.float32], label: NDArray[np.uint8], seed: int, *, oriented: bool
    ) -> None:
        """``image``: ``(C, *patch)``; ``label``: ``(*patch)``. ``seed``: below 2**32. ``oriented``: see ``cohort.Case``."""
        try:
            transforms = self._idle.pop()
        except IndexError:
            transforms = _Transforms(self._level, self._patch)
        try:
            transforms.apply(image, label, seed, oriented=oriented)
        finally:
            self._idle.append(transforms)


class _Transforms:
    """What one thread augments with."""

    def __init__(self, level: Literal["light", "standard"], patch: tuple[int, ...]) -> None:
        load_monai()
        self._random = np.random.RandomState(0)
        with _PLAIN_TENSORS:
            self._photograph = [*_mirroring(), *_lasting(level, patch)]
            self._oriented = _lasting(level, patch)
        for transform in (*self._photograph, *self._oriented):
            transform.set_random_state(state=self._random)

    def apply(
        self, image: NDArray[np.float32], label: NDArray[np.uint8], seed: int, *, oriented: bool
    ) -> None:
        """See :class:`Augmentation`."""
        self._random.seed(seed)
        patch: dict[str, Any] = {"image": torch.from_numpy(image), "label": torch.from_numpy(label[None])}
        with _PLAIN_TENSORS, _same_everywhere():
            for transform in self._oriented if oriented else self._photograph:
                patch = transform(patch)
        image[...] = patch["image"].numpy()
        label[...] = patch["label"].numpy()[0]


def build_augmentation(level: Level, patch: tuple[int, ...]) -> Augmentation | None:
    """The augmentation of an experiment; None where there is none."""
    return None if level == "none" else Augmentation(level, patch)


def _mirroring() -> list[Any]:
    from monai.transforms import RandFlipd

    return [RandFlipd(_BOTH, prob=0.5, spatial_axis=axis) for axis in (0, 1)]


def _lasting(level: Literal["light", "standard"], patch: tuple[int, ...]) -> list[Any]:
    from monai.transforms import (
        RandAdjustContrastd,
        RandAffined,
        RandGaussianNoised,
        RandScaleIntensityd,
        RandShiftIntensityd,
    )

    brightness = [
        RandScaleIntensityd("image", factors=0.1, prob=1.0),
        RandShiftIntensityd("image", offsets=0.1, prob=1.0),
    ]
    if level == "light":
        return brightness
    affine = RandAffined(
        _BOTH,
        prob=0.25,
        rotate_range=_ROTATION if len(patch) == 2 else (0.0, 0.0, _ROTATION),
        scale_range=(0.1,) * len(patch),
        spatial_size=patch,
        mode=("bilinear", "nearest"),
        padding_mode="border",
        cache_grid=True,
    )
    gamma = RandAdjustContrastd("image", prob=0.15, gamma=(0.7, 1.5), retain_stats=True)
    return [affine, *brightness, gamma, RandGaussianNoised("image", prob=0.15, std=0.1)]


@contextmanager
def _same_everywhere() -> Iterator[None]:
    """Arithmetic that depends neither on the precision that the network trains in nor on how many threads it has."""
    threads = torch.get_num_threads()
    if threads > 1:
        torch.set_num_threads(1)
    try:
        with torch.autocast("cpu", enabled=False):
            yield
    finally:
        if threads > 1:
            torch.set_num_threads(threads)


class _PlainTensors:
    """Within, MONAI does not record applied operations, which nothing reads here and which takes longer than the transforms.

    Its switch is one for all threads: the first one in turns it off, and the last one out puts it back.
    """

    def __init__(self) -> None:
        self._lock, self._inside, self._before = threading.Lock(), 0, True

    def __enter__(self) -> None:
        from monai.data import get_track_meta, set_track_meta

        with self._lock:
            if not self._inside:
                self._before = get_track_meta()
                set_track_meta(False)
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        from monai.data import set_track_meta

        with self._lock:
            self._inside -= 1
            if not self._inside:
                set_track_meta(self._before)


_PLAIN_TENSORS = _PlainTensors()
