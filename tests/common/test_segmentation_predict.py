"""Sliding windows: every voxel decided, as MONAI would, whatever the extent and the batch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.inferers import sliding_window_inference
from torch import Tensor, nn

from fedmed_common.config import Experiment
from fedmed_common.models import build_model
from fedmed_common.tasks import build_task
from fedmed_common.tasks.segmentation import Segmentation
from fedmed_common.tasks.sliding_window import Windows, sliding_probabilities

CLASSES = ("liver", "spleen")
WINDOW = {2: (8, 12), 3: (8, 12, 4)}
dimensions_ = st.sampled_from([2, 3])
shapes = st.tuples(st.integers(1, 30), st.integers(1, 30), st.integers(1, 9))


def task(dimensions: int) -> Segmentation:
    return build_task(
        Experiment.model_validate(
            {
                "name": "windows",
                "rounds": 1,
                "task": {"classes": CLASSES, "dimensions": dimensions},
                "data": {"patch": WINDOW[dimensions]},
                "model": {"channels": (4, 8)},
            }
        )
    )


class Nearest(nn.Module):
    """Sees the class in the voxel's value."""

    def forward(self, image: Tensor) -> Tensor:
        return torch.cat([-((image - value) ** 2) for value in range(len(CLASSES) + 1)], dim=1)


def whole_number_convolution(dimensions: int) -> nn.Module:
    """Looks at neighbours, and its sums are exact in whatever order."""
    convolution = (nn.Conv2d if dimensions == 2 else nn.Conv3d)(1, len(CLASSES) + 1, 3, padding=1, bias=False)
    weights = np.random.default_rng(0).integers(-8, 9, convolution.weight.shape)
    convolution.load_state_dict({"weight": torch.tensor(weights, dtype=torch.float32)})
    return convolution


def whole_numbers(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-8, 9, (1, *shape)).astype(np.float32)


@settings(max_examples=30, deadline=None)
@given(dimensions_, shapes, st.integers(0, 2**32 - 1))
def test_a_model_that_sees_the_class_gives_the_label_back(
    dimensions: int, shape: tuple[int, int, int], seed: int
) -> None:
    label = np.random.default_rng(seed).integers(0, len(CLASSES) + 1, shape).astype(np.uint8)
    predicted = task(dimensions).predict(Nearest(), label[None].astype(np.float32), "cpu")
    assert predicted.dtype == np.uint8
    np.testing.assert_array_equal(predicted, label)


@settings(max_examples=15, deadline=None)
@given(dimensions_, shapes)
def test_windows_in_batches_equal_windows_one_by_one(dimensions: int, shape: tuple[int, int, int]) -> None:
    model, image = whole_number_convolution(dimensions), whole_numbers(shape)
    together = task(dimensions)
    alone = replace(together, voxels_at_once=1)
    np.testing.assert_array_equal(together.predict(model, image, "cpu"), alone.predict(model, image, "cpu"))


@settings(max_examples=15, deadline=None)
@given(shapes)
def test_a_2d_task_sees_each_slice_alone(shape: tuple[int, int, int]) -> None:
    model, image = whole_number_convolution(2), whole_numbers(shape)
    slices = [task(2).predict(model, image[..., z : z + 1], "cpu") for z in range(shape[2])]
    np.testing.assert_array_equal(task(2).predict(model, image, "cpu"), np.concatenate(slices, axis=2))


@pytest.mark.parametrize("shape", [(8, 12, 4), (29, 12, 9), (5, 30, 17), (23, 7, 2)])
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5])
def test_windows_lie_and_blend_as_monais(shape: tuple[int, int, int], overlap: float) -> None:
    segmentation = replace(task(3), overlap=overlap)
    model = build_model(segmentation.experiment).eval()
    image = np.random.default_rng(1).normal(size=(1, *shape)).astype(np.float32)
    predicted = segmentation.predict(model, image, "cpu")
    with torch.inference_mode():
        logits = sliding_window_inference(
            torch.from_numpy(image)[None],
            WINDOW[3],
            1,
            model,
            overlap=overlap,
            mode="gaussian",
            sigma_scale=0.125,
        )[0]
    first, second = logits.topk(2, dim=0).values
    clear = (first - second > 1e-4).numpy()
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(predicted[clear], logits.argmax(0).numpy()[clear])


@pytest.mark.parametrize("shape", [(8, 12, 4), (29, 12, 9), (5, 30, 17)])
def test_probabilities_are_those_of_the_same_logits(shape: tuple[int, ...]) -> None:
    segmentation = task(3)
    model = build_model(segmentation.experiment).eval()
    image = np.random.default_rng(1).normal(size=(1, *shape)).astype(np.float32)
    windows = Windows(size=WINDOW[3], classes=3, overlap=0.5, voxels_at_once=1000)
    found = sliding_probabilities(model, image, windows, "cpu")
    with torch.inference_mode():
        logits = sliding_window_inference(
            torch.from_numpy(image)[None],
            WINDOW[3],
            1,
            model,
            overlap=0.5,
            mode="gaussian",
            sigma_scale=0.125,
        )[0]
    np.testing.assert_allclose(found, logits.softmax(0).numpy(), atol=1e-5)


def test_reads_a_memory_map_and_leaves_the_model_in_its_mode(tmp_path: Path) -> None:
    np.save(tmp_path / "image.npy", whole_numbers((20, 9, 6)))
    image = np.load(tmp_path / "image.npy", mmap_mode="r")
    model = nn.Sequential(whole_number_convolution(3), nn.Dropout(0.9))
    model.train()
    first, second = (task(3).predict(model, image, "cpu") for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert model.training


def test_follows_the_callers_autocast() -> None:
    image = whole_numbers((16, 12, 8))
    model = whole_number_convolution(3)
    with torch.autocast("cpu", torch.bfloat16):
        predicted = task(3).predict(model, image, "cpu")
    assert (predicted == task(3).predict(model, image, "cpu")).mean() > 0.95
