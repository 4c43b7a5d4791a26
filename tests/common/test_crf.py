"""The conditional random field: the exact mean field on small images, and where it stands in a prediction."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from scipy.special import softmax
from torch import Tensor, nn

from fedmed_common.config import CRF, Experiment
from fedmed_common.tasks import build_task, crf
from fedmed_common.tasks.crf import Lattice, features_of, normalised, refine, smoothing, spans_of
from fedmed_common.tasks.segmentation import Segmentation

Array = NDArray[np.floating[Any]]
SHAPES = [(24, 30), (9, 10, 11)]


def scene(shape: tuple[int, ...], channels: int = 1, seed: int = 0) -> tuple[Array, Array, Array]:
    """An image ``(C, *S)`` with a bright box, its label ``(*S)``, and probabilities ``(2, *S)`` with mistakes."""
    rng = np.random.default_rng(seed)
    label = np.zeros(shape, np.int64)
    label[tuple(slice(size // 4, 3 * size // 4) for size in shape)] = 1
    image = label + rng.normal(0, 0.03, (channels, *shape))
    logit = 2.0 * (label - 0.5) + rng.normal(0, 1.0, shape)
    probabilities = softmax(np.stack([-logit, logit]), axis=0)
    return image.astype(np.float32), label, probabilities.astype(np.float32)


def gaussian(features_ND: Array) -> Array:
    """The kernel between all pairs, normalised on both sides: what no image of more than some thousand voxels can have."""
    kernel = np.exp(-((features_ND[:, None] - features_ND[None]) ** 2).sum(-1) / 2)
    root = np.sqrt(kernel.sum(1))
    result: Array = kernel / root[:, None] / root[None]
    return result


def exact(probabilities: Array, image: Array, settings: CRF) -> Array:
    """Algorithm 1 of the paper with dense kernels, in double precision."""
    shape = probabilities.shape[1:]
    places = np.indices(shape).reshape(len(shape), -1).T / np.asarray(settings.smoothness_sigma)
    kernel = settings.bilateral_weight * gaussian(features_of(image, settings, spans_of(image)))
    kernel = kernel + settings.smoothness_weight * gaussian(places)
    prior = np.log(probabilities.reshape(2, -1).T.astype(np.float64))
    current = softmax(prior, axis=1)
    for _ in range(settings.iterations):
        energy = np.stack([kernel @ current[:, 1], kernel @ current[:, 0]], 1)
        current = softmax(prior - energy, axis=1)
    return current.T.reshape(probabilities.shape)


@pytest.mark.parametrize("shape", SHAPES)
def test_smoothness_alone_is_the_exact_mean_field(shape: tuple[int, ...]) -> None:
    image, _, probabilities = scene(shape)
    sigma = (2.0, 3.0, 1.5)[: len(shape)]
    settings = CRF(bilateral_weight=0.0, smoothness_sigma=sigma)
    found = refine(probabilities, image, settings)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, exact(probabilities, image, settings), atol=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("channels", [1, 2])
def test_the_whole_field_is_near_the_exact_one(shape: tuple[int, ...], channels: int) -> None:
    """The lattice approximates the bilateral kernel; the mistakes that the exact field mends are mended."""
    image, label, probabilities = scene(shape, channels)
    settings = CRF(bilateral_sigma=10.0, intensity_sigma=25.0)
    found, wanted = refine(probabilities, image, settings), exact(probabilities, image, settings)
    np.testing.assert_allclose(found.sum(0), 1.0, rtol=1e-5)
    assert (found.argmax(0) != wanted.argmax(0)).mean() < 0.002
    assert np.abs(found - wanted).mean() < 0.005
    before = np.count_nonzero(probabilities.argmax(0) != label)
    assert np.count_nonzero(found.argmax(0) != label) < before / 3


@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_the_lattice_weighs_by_distance_as_a_gaussian_does(dimensions: int) -> None:
    """Of scattered points; those at the rim, around which corners are missing, have the largest part in what differs."""
    points = np.random.default_rng(1).normal(0, 1.0, (1500, dimensions))
    values = points[:, :1].astype(np.float32) ** 2
    found, wanted = normalised(Lattice(points), len(points))(values), gaussian(points) @ values
    assert np.linalg.norm(found - wanted) < 0.06 * np.linalg.norm(wanted)


@pytest.mark.parametrize("dimensions", [1, 2, 3, 5, 8])
def test_simplices_fit_together(dimensions: int) -> None:
    """A point and one beside it weigh all others alike, also where a face of a simplex is between the two."""
    points = np.random.default_rng(3).normal(0, 2.0, (300, dimensions))
    kernel = Lattice(np.concatenate([points, points + 1e-7]))(np.eye(600, dtype=np.float32))
    np.testing.assert_allclose(kernel[:300], kernel[300:], atol=1e-4)


def test_the_lattice_is_linear_and_symmetric_and_keeps_what_it_is_given() -> None:
    rng = np.random.default_rng(2)
    points, values = rng.normal(0, 3, (500, 3)), rng.normal(size=(500, 2)).astype(np.float32)
    lattice = Lattice(points)
    kernel = lattice(np.eye(500, dtype=np.float32))
    np.testing.assert_allclose(kernel, kernel.T, atol=1e-5)
    assert (kernel >= 0).all()
    np.testing.assert_allclose(lattice(values), kernel @ values, atol=1e-4)
    far = np.concatenate([points[:1], points[:1] + 1000])
    apart = Lattice(far)(np.eye(2, dtype=np.float32))
    assert apart[0, 1] == apart[1, 0] == 0.0 < apart[0, 0]


def test_the_lattice_is_the_same_whatever_it_takes_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(4)
    points, values = rng.normal(0, 3, (100, 3)), rng.normal(size=(100, 2)).astype(np.float32)
    whole = Lattice(points)(values)
    monkeypatch.setattr(crf, "_AT_ONCE", 7)
    np.testing.assert_array_equal(Lattice(points)(values), whole)


def test_points_of_one_place_share_their_value() -> None:
    kernel = Lattice(np.zeros((4, 3)))(np.eye(4, dtype=np.float32))
    np.testing.assert_allclose(kernel, kernel[0, 0], rtol=1e-6)


def test_the_smoothness_kernel_reaches_as_far_along_each_axis_as_asked() -> None:
    point = np.zeros((21, 21), np.float32)
    point[10, 10] = 1.0
    spread = smoothing((21, 21), (1.0, 2.0))(point.reshape(-1, 1)).reshape(21, 21)
    np.testing.assert_allclose(spread[11, 10] / spread[10, 10], np.exp(-1 / 2), rtol=1e-4)
    np.testing.assert_allclose(spread[10, 12] / spread[10, 10], np.exp(-1 / 2), rtol=1e-4)


def test_without_messages_probabilities_stay() -> None:
    image, _, probabilities = scene((12, 9))
    still = CRF(bilateral_weight=1e-9, smoothness_weight=1e-9)
    np.testing.assert_allclose(refine(probabilities, image, still), probabilities, rtol=1e-5)


def test_every_class_and_channel_counts_alike() -> None:
    """Other units of a channel, and another order of classes, change nothing else."""
    image, _, probabilities = scene((16, 12), channels=2)
    three = np.concatenate([probabilities * 0.9, np.full_like(probabilities[:1], 0.1)])
    first = refine(three, image, CRF())
    other = refine(three[[2, 0, 1]], image * np.float32(8.0) - 3, CRF())
    np.testing.assert_allclose(other, first[[2, 0, 1]], atol=1e-4)
    flat = refine(three, np.zeros_like(image), CRF())
    assert np.isfinite(flat).all()


class Said(nn.Module):
    """Twice the logit of the last channel against the background."""

    def forward(self, image: Tensor) -> Tensor:
        return torch.stack([-image[:, -1], image[:, -1]], 1)


def task(dimensions: int, **settings: object) -> Segmentation:
    built = build_task(
        Experiment.model_validate(
            {
                "name": "field",
                "rounds": 1,
                "task": {"classes": ["box"], "dimensions": dimensions, **settings},
                "data": {"channels": 2, "patch": (8, 12, 4)[:dimensions]},
                "model": {"channels": (4, 8)},
            }
        )
    )
    assert isinstance(built, Segmentation)
    return built


@pytest.mark.parametrize("dimensions", [2, 3])
def test_a_prediction_is_refined_only_where_asked(dimensions: int) -> None:
    """A volume as a whole; in a 2D task each slice alone. Windows blend to the logits of the image."""
    shape = (17, 20, 6)
    image, _, probabilities = scene(shape)
    logit = np.log(probabilities[1] / probabilities[0]) / 2
    both = np.concatenate([image, logit[None]])
    settings = CRF(iterations=3, bilateral_sigma=5.0)
    plain = task(dimensions).predict(Said(), both, "cpu")
    np.testing.assert_array_equal(plain, logit > 0)
    refined = task(dimensions, crf=settings.model_dump()).predict(Said(), both, "cpu")
    assert refined.dtype == np.uint8
    assert (refined != plain).any()
    if dimensions == 3:
        wanted = refine(probabilities, both, settings).argmax(0)
    else:
        places = range(shape[2])
        wanted = np.stack(
            [refine(probabilities[..., z], both[..., z], settings, spans_of(both)).argmax(0) for z in places],
            -1,
        )
    assert (refined != wanted).mean() < 0.001


def test_training_does_not_know_of_it() -> None:
    label = torch.randint(0, 2, (2, 8, 12))
    image, known = torch.randn(2, 2, 8, 12), torch.ones(2, 1, dtype=torch.bool)
    losses = [task(2, **extra).objective(Said(), image, label, known) for extra in ({}, {"crf": {}})]
    assert torch.equal(*losses)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            {"crf": {"smoothness_sigma": [1.0, 2.0, 3.0]}},
            r"crf\.smoothness_sigma has 3 numbers, but dimensions is 2",
        ),
        ({"crf": {"iterations": 0}}, "iterations"),
        ({"name": "classification", "crf": {}}, "crf is for name = 'segmentation'"),
    ],
)
def test_what_cannot_be_meant_is_refused(settings: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        task(2, **settings)


def test_defaults_are_deeplabs() -> None:
    """``run_densecrf.sh`` of the authors: W 4, X_STD 49, R_STD 5, POS_W 3, POS_X_STD 3, ten iterations; none unless asked."""
    assert CRF().model_dump() == {
        "iterations": 10,
        "bilateral_weight": 4.0,
        "bilateral_sigma": 49.0,
        "intensity_sigma": 5.0,
        "smoothness_weight": 3.0,
        "smoothness_sigma": 3.0,
    }
    assert task(2).experiment.task.crf is None


def test_of_a_2d_task_each_slice_is_stretched_over_the_range_of_its_case() -> None:
    rng = np.random.default_rng(5)
    volume = np.stack([rng.normal(0, 0.01, (12, 12)), rng.normal(0, 5.0, (12, 12))], -1)[None]
    wide, settings = volume.astype(np.float32), CRF(intensity_sigma=5.0)
    of_case = features_of(wide[..., 0], settings, spans_of(wide))[:, -1]
    of_slice = features_of(wide[..., 0], settings, spans_of(wide[..., 0]))[:, -1]
    assert np.ptp(of_slice) == pytest.approx(51.0)
    assert np.ptp(of_case) < 0.2


def test_a_field_without_messages_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"both 0, which changes nothing"):
        CRF(bilateral_weight=0.0, smoothness_weight=0.0)
