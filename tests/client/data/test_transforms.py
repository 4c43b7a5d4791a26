"""Augmentation: repeatable, image and label together, and no anatomy mirrored."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Literal

import numpy as np
import pytest
import torch
from monai.data import get_track_meta, set_track_meta

from fedmed_client.data.transforms import Augmentation, build_augmentation

LEVELS = ("light", "standard")
PATCHES = ((16, 12), (16, 12, 8))


def _patch(shape: tuple[int, ...], channels: int = 2) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    label = rng.integers(0, 3, shape).astype(np.uint8)
    return rng.random((channels, *shape), np.float32), label


def _apply(
    augment: Augmentation, shape: tuple[int, ...], seed: int, *, oriented: bool
) -> tuple[np.ndarray, np.ndarray]:
    image, label = _patch(shape)
    augment(image, label, seed, oriented=oriented)
    return image, label


def test_none_is_none() -> None:
    assert build_augmentation("none", (8, 8)) is None


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("shape", PATCHES)
@pytest.mark.parametrize("oriented", [True, False])
def test_a_seed_decides_whatever_was_before(
    level: Literal["light", "standard"], shape: tuple[int, ...], oriented: bool
) -> None:
    augment, other = Augmentation(level, shape), Augmentation(level, shape)
    forwards = [_apply(augment, shape, seed, oriented=oriented) for seed in range(12)]
    backwards = [_apply(other, shape, seed, oriented=oriented) for seed in reversed(range(12))]
    for here, there in zip(forwards, reversed(backwards), strict=True):
        assert np.array_equal(here[0], there[0])
        assert np.array_equal(here[1], there[1])
    assert len({image.tobytes() for image, _ in forwards}) == 12


@pytest.mark.parametrize("shape", PATCHES)
def test_other_randomness_is_left_alone(shape: tuple[int, ...]) -> None:
    augment = Augmentation("standard", shape)
    np.random.seed(3)
    torch.manual_seed(3)
    before = np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    for seed in range(10):
        _apply(augment, shape, seed, oriented=False)
    assert (np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == before


@pytest.mark.parametrize("shape", PATCHES)
def test_light_changes_brightness_and_mirrors_only_photographs(shape: tuple[int, ...]) -> None:
    augment = Augmentation("light", shape)
    image, label = _patch(shape)
    mirrored = {(first, second): 0 for first in (1, -1) for second in (1, -1)}
    for seed in range(200):
        still = _apply(augment, shape, seed, oriented=True)
        assert np.array_equal(still[1], label)
        assert np.corrcoef(still[0].ravel(), image.ravel())[0, 1] > 0.9999
        assert np.abs(still[0] - image).max() <= 0.2 + 1e-6
        turned = _apply(augment, shape, seed, oriented=False)
        found = [turn for turn in mirrored if np.array_equal(turned[1], label[:: turn[0], :: turn[1]])]
        assert len(found) == 1
        mirrored[found[0]] += 1
        expected = image[:, :: found[0][0], :: found[0][1]]
        assert np.corrcoef(turned[0].ravel(), expected.ravel())[0, 1] > 0.9999
    assert min(mirrored.values()) > 20


@pytest.mark.parametrize("shape", [(48, 48), (48, 48, 16)])
def test_standard_moves_image_and_label_together(shape: tuple[int, ...]) -> None:
    augment = Augmentation("standard", shape)
    label = np.zeros(shape, np.uint8)
    label[10:30, 12:28] = 2
    moved = 0
    for seed in range(60):
        image, mask = (label[None] * 10).astype(np.float32), label.copy()
        augment(image, mask, seed, oriented=True)
        assert set(np.unique(mask)) <= {0, 2}
        assert ((image[0] > 10) == (mask == 2)).mean() > 0.98
        overlap = 2 * ((mask == 2) & (label == 2)).sum() / ((mask == 2).sum() + (label == 2).sum())
        assert overlap > 0.6
        moved += not np.array_equal(mask, label)
    assert 5 <= moved <= 30


def test_the_switch_for_metadata_is_put_back() -> None:
    before = get_track_meta()
    try:
        for value in (True, False):
            set_track_meta(value)
            _apply(Augmentation("standard", (16, 12)), (16, 12), 0, oriented=False)
            assert get_track_meta() is value
    finally:
        set_track_meta(before)


@pytest.mark.parametrize("shape", PATCHES)
def test_neither_threads_nor_the_precision_of_the_network_change_a_patch(shape: tuple[int, ...]) -> None:
    augment = Augmentation("standard", shape)
    alone = [_apply(augment, shape, seed, oriented=False) for seed in range(40)]
    torch.set_num_threads(3)
    try:
        with ThreadPoolExecutor(8) as threads:
            apply = partial(_apply, augment, shape, oriented=False)
            several = list(threads.map(apply, range(40)))
        with torch.autocast("cpu", torch.bfloat16):
            halved = [_apply(augment, shape, seed, oriented=False) for seed in range(40)]
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(1)
    for one, *others in zip(alone, several, halved, strict=True):
        for other in others:
            assert np.array_equal(one[0], other[0])
            assert np.array_equal(one[1], other[1])
    assert get_track_meta()
