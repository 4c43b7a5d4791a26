"""Scores of a case against MONAI's metrics, SciPy's distance maps and counts by hand."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from monai.metrics import compute_hausdorff_distance, compute_surface_dice
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion, distance_transform_edt

from fedmed_common.config import Experiment
from fedmed_common.metrics import Mean
from fedmed_common.tasks import build_task, patient_mean
from fedmed_common.tasks.segmentation import Segmentation
from fedmed_common.tasks.surface import surface_distances

CLASSES = ("liver", "spleen")
TOLERANCE_MM = 1.3
Mask = NDArray[np.bool_]
Spacing = tuple[float, float, float]
millimetres = st.floats(0.3, 5.0)
spacings = st.tuples(millimetres, millimetres, millimetres)
seeds = st.integers(0, 2**32 - 1)
depths = st.sampled_from([1, 7])
some = settings(max_examples=40, deadline=None)


def task(*, surface: bool = True) -> Segmentation:
    return build_task(
        Experiment.model_validate(
            {
                "name": "scores",
                "rounds": 1,
                "task": {"classes": CLASSES, "surface_metrics": surface, "nsd_tolerance_mm": TOLERANCE_MM},
                "data": {"patch": (16, 16, 16)},
            }
        )
    )


def blob(rng: np.random.Generator, depth: int) -> Mask:
    """An ellipsoid with bites taken out, somewhere, perhaps across the border."""
    shape = np.array([9, 12, depth])
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"))
    centre, radius = rng.random(3) * shape, 1.5 + rng.random(3) * shape / 2
    mask = (((grid.T - centre) / radius) ** 2).sum(-1).T < 1
    mask &= rng.random(mask.shape) < 0.95
    mask[tuple(rng.integers(0, shape))] = True
    return np.asarray(mask)


def pair(seed: int, depth: int) -> tuple[Mask, Mask]:
    rng = np.random.default_rng(seed)
    return blob(rng, depth), blob(rng, depth)


def scores(predicted: Mask, truth: Mask, spacing_mm: Spacing) -> dict[str, float]:
    found = task().score(predicted.astype(np.uint8), truth.astype(np.uint8), (True, False), spacing_mm)
    return {name: mean.value for name, mean in found.items()}


@some
@given(seeds, depths, spacings)
def test_equals_monai(seed: int, depth: int, spacing_mm: Spacing) -> None:
    predicted, truth = pair(seed, depth)
    distances = surface_distances(predicted, truth, spacing_mm)
    assume(not np.isclose(np.concatenate([distances.to_truth, distances.to_prediction]), TOLERANCE_MM).any())
    found = scores(predicted, truth, spacing_mm)
    dimensions = 3 if depth > 1 else 2
    one_hot = [
        torch.tensor(mask.squeeze(2) if depth == 1 else mask)[None, None].float()
        for mask in (predicted, truth)
    ]
    spacing = list(spacing_mm[:dimensions])
    hd95 = compute_hausdorff_distance(*one_hot, include_background=True, percentile=95, spacing=spacing)
    nsd = compute_surface_dice(
        *one_hot, class_thresholds=[TOLERANCE_MM], include_background=True, spacing=spacing
    )
    assert found["hd95_mm/liver"] == pytest.approx(hd95.item(), rel=1e-5)
    assert found["nsd/liver"] == pytest.approx(nsd.item(), abs=1e-6)
    both = (predicted & truth).sum()
    assert found["dice/liver"] == pytest.approx(2 * both / (predicted.sum() + truth.sum()))


@some
@given(seeds, spacings)
def test_distances_equal_a_distance_map_over_the_whole_image(seed: int, spacing_mm: Spacing) -> None:
    predicted, truth = pair(seed, 7)
    surfaces = [mask & ~binary_erosion(mask) for mask in (predicted, truth)]
    maps = [distance_transform_edt(~surface, sampling=spacing_mm) for surface in surfaces]
    found = surface_distances(predicted, truth, spacing_mm)
    np.testing.assert_allclose(found.to_truth, maps[1][surfaces[0]], atol=1e-9)
    np.testing.assert_allclose(found.to_prediction, maps[0][surfaces[1]], atol=1e-9)


@some
@given(seeds, depths, spacings)
def test_a_perfect_prediction_has_perfect_scores(seed: int, depth: int, spacing_mm: Spacing) -> None:
    mask, _ = pair(seed, depth)
    assert scores(mask, mask, spacing_mm) == {"dice/liver": 1.0, "hd95_mm/liver": 0.0, "nsd/liver": 1.0}


@some
@given(seeds, spacings)
def test_surface_scores_know_no_direction_and_no_axis_order(seed: int, spacing_mm: Spacing) -> None:
    predicted, truth = pair(seed, 7)
    found = scores(predicted, truth, spacing_mm)
    assert scores(truth, predicted, spacing_mm) == pytest.approx(found)
    turned = scores(predicted.transpose(2, 0, 1), truth.transpose(2, 0, 1), (spacing_mm[2], *spacing_mm[:2]))
    assert turned == pytest.approx(found)


def test_two_voxels_apart_by_hand() -> None:
    predicted, truth = np.zeros((2, 9, 9, 9), bool)
    predicted[2, 3, 4] = truth[5, 3, 6] = True
    found = scores(predicted, truth, (2.0, 1.0, 0.5))
    assert found == {
        "dice/liver": 0.0,
        "hd95_mm/liver": pytest.approx(math.hypot(6.0, 1.0)),
        "nsd/liver": 0.0,
    }


@pytest.mark.parametrize("steps", range(1, 30))
def test_a_distance_equal_to_the_tolerance_is_within_it(steps: int) -> None:
    predicted, truth = np.zeros((2, 40, 1, 1), bool)
    predicted[3], truth[3 + steps] = True, True
    assert surface_distances(predicted, truth, (0.7, 1.0, 1.0)).surface_dice(steps * 0.7) == 1.0


@pytest.mark.parametrize(("shape", "diagonal"), [((3, 4, 1), 5.0), ((3, 4, 12), 13.0)])
def test_nothing_predicted_is_as_far_away_as_the_image_allows(
    shape: tuple[int, int, int], diagonal: float
) -> None:
    truth = np.ones(shape, bool)
    assert scores(~truth, truth, (1.0, 1.0, 1.0)) == {
        "dice/liver": 0.0,
        "hd95_mm/liver": diagonal,
        "nsd/liver": 0.0,
    }


@pytest.mark.parametrize(
    ("change", "annotated", "expected"),
    [
        (lambda label: label, (True, True), {"dice/liver": 1.0, "false_positive/spleen": 0.0}),
        (lambda label: label * 0, (True, True), {"dice/liver": 0.0, "false_positive/spleen": 0.0}),
        (lambda label: label * 2, (True, True), {"dice/liver": 0.0, "false_positive/spleen": 1.0}),
        (lambda label: label * 2, (True, False), {"dice/liver": 0.0}),
        (lambda label: label, (False, True), {"false_positive/spleen": 0.0}),
        (lambda label: label, (False, False), {}),
    ],
)
def test_what_is_scored_follows_presence_and_annotation(
    change: Callable[[NDArray[np.uint8]], NDArray[np.uint8]],
    annotated: tuple[bool, bool],
    expected: dict[str, float],
) -> None:
    label = np.zeros((5, 5, 5), np.uint8)
    label[1:3, 2:4, 3] = 1
    found = task(surface=False).score(change(label), label, annotated, (1.0, 1.0, 1.0))
    assert found == {name: Mean(value, 1.0) for name, value in expected.items()}


def test_a_patient_counts_once_however_many_cases() -> None:
    cases = [
        {"dice/liver": Mean(0.5, 1.0), "false_positive/spleen": Mean(1.0, 1.0)},
        {"dice/liver": Mean(1.0, 1.0), "dice/spleen": Mean(0.25, 1.0)},
    ]
    assert patient_mean(cases) == {
        "dice/liver": Mean(0.75, 1.0),
        "false_positive/spleen": Mean(1.0, 1.0),
        "dice/spleen": Mean(0.25, 1.0),
    }
    assert patient_mean([]) == {}
