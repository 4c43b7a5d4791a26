"""Axes, crop, voxel size, intensity."""

from __future__ import annotations

import numpy as np
import pytest

from fedmed_client.data.bias import without_bias
from fedmed_client.data.preprocess import crop, linear, nearest, normalise, prepare, reorient, resample
from fedmed_client.data.volume import Volume
from fedmed_common.config import Data, Intensity
from fedmed_common.errors import DataError, GeometryError
from fedmed_common.intensities import foreground, landmarks, on_scale

SETTINGS = Data(patch=(8, 8, 8), intensity=Intensity(kind="window", low=0, high=1))


def test_every_storage_order_of_one_scan_is_prepared_alike() -> None:
    rng = np.random.default_rng(0)
    image, label = rng.random((4, 5, 6), np.float32), rng.integers(0, 3, (4, 5, 6)).astype(np.uint8)
    expected = prepare(Volume(voxels=image[None], affine=np.diag([1.0, 2.0, 3.0, 1.0])), label, SETTINGS)
    for order in ((0, 1, 2), (1, 0, 2), (2, 1, 0), (1, 2, 0)):
        for signs in ((1, 1, 1), (-1, -1, 1), (-1, 1, -1)):
            affine = np.eye(4)
            affine[:3, :3] = np.diag([1.0, 2.0, 3.0])[:, order] * signs
            turn = tuple(slice(None, None, sign) for sign in signs)
            stored = Volume(voxels=image.transpose(order)[turn][None], affine=affine)
            result = prepare(stored, label.transpose(order)[turn], SETTINGS)
            assert np.array_equal(result.image, expected.image)
            assert np.array_equal(result.label, expected.label)
            assert result.spacing_mm == (1.0, 2.0, 3.0)


def test_a_photograph_keeps_its_axes() -> None:
    image, label = np.random.default_rng(0).random((3, 4, 5, 1), np.float32), np.zeros((4, 5, 1), np.uint8)
    assert np.array_equal(reorient(image, label, np.eye(4))[0], image)


def test_a_singular_affine_is_a_geometry_error() -> None:
    volume = Volume(voxels=np.zeros((1, 2, 2, 2), np.float32), affine=np.diag([1.0, 0.0, 1.0, 1.0]))
    with pytest.raises(GeometryError, match="singular"):
        prepare(volume, np.zeros((2, 2, 2), np.uint8), SETTINGS)


def test_linear_resampling_keeps_a_ramp_and_the_extent() -> None:
    ramp = np.arange(12, dtype=np.float32).reshape(1, 12, 1, 1)
    half = resample(ramp, (1.0, 1.0, 1.0), (2.0, 1.0, 1.0), linear)
    assert half.ravel().tolist() == [0.5, 2.5, 4.5, 6.5, 8.5, 10.5]
    double = resample(ramp, (1.0, 1.0, 1.0), (0.5, 1.0, 1.0), linear)
    assert double.shape == (1, 24, 1, 1)
    assert np.allclose(np.diff(double.ravel()[1:-1]), 0.5)


def test_nearest_resampling_makes_no_new_values_and_a_single_slice_stays_single() -> None:
    label = np.random.default_rng(0).choice([0, 7, 250], (1, 9, 10, 1)).astype(np.uint8)
    result = resample(label, (1.0, 1.0, 5.0), (0.7, 1.3, 1.0), nearest)
    assert result.shape == (1, 13, 8, 1)
    assert set(np.unique(result)) <= {0, 7, 250}
    assert result.dtype == np.uint8


def test_crop_keeps_foreground_and_label() -> None:
    image = np.zeros((1, 10, 10, 10), np.float32)
    image[0, 3:6, 3:6, 3:6] = 100
    label = np.zeros((10, 10, 10), np.uint8)
    label[8, 4, 4] = 1
    cut, mask = crop(image, label, foreground(image) | (label > 0))
    assert cut.shape == (1, 6, 3, 3)
    assert mask.sum() == 1
    assert cut.sum() == image.sum()


def test_intensity_kinds() -> None:
    image = np.linspace(-100, 300, 4000, dtype=np.float32).reshape(1, 10, 20, 20)
    window = normalise(image, Intensity(kind="window", low=0, high=200))
    assert (window.min(), window.max()) == (0.0, 1.0)
    assert window[image == image.flat[2000]][0] == pytest.approx(image.flat[2000] / 200)
    percentile = normalise(image, Intensity(kind="percentile", low=10, high=90))
    assert np.isclose((percentile == 0).mean(), 0.1, atol=0.01)
    scale = normalise(image, Intensity(kind="scale"))
    assert np.allclose(scale, np.clip(image / 255, 0, 1))
    for kind in ("window", "percentile", "scale", "zscore"):
        assert normalise(image, Intensity(kind=kind)).dtype == np.float32


def test_zscore_measures_the_foreground_and_survives_outliers() -> None:
    rng = np.random.default_rng(0)
    image = np.zeros((1, 20, 20, 20), np.float32)
    image[0, 5:15] = rng.normal(1000, 50, (10, 20, 20))
    inside = normalise(image, Intensity())[0, 5:15]
    assert abs(inside.mean()) < 0.05
    assert inside.std() == pytest.approx(1, abs=0.05)
    image[0, 7, 7, 7] = 1.7e6
    spoiled = normalise(image, Intensity())
    assert np.isfinite(spoiled).all()
    assert spoiled.max() == 10
    assert spoiled[0, 5:15].std() == pytest.approx(1, abs=0.1)


def test_a_constant_image_becomes_zero() -> None:
    assert not normalise(np.full((2, 4, 4, 4), 7, np.float32), Intensity()).any()


def test_voxels_that_are_no_numbers_take_the_lowest_value() -> None:
    image = np.array([0.2, np.nan, 0.8, np.inf], np.float32).reshape(1, 4, 1, 1)
    result = prepare(Volume(voxels=image, affine=np.eye(4)), np.zeros((4, 1, 1), np.uint8), SETTINGS)
    assert result.image.ravel().tolist() == pytest.approx([0.2, 0.2, 0.8, 0.2])
    with pytest.raises(DataError, match="finite"):
        prepare(Volume(voxels=image * np.nan, affine=np.eye(4)), np.zeros((4, 1, 1), np.uint8), SETTINGS)


def test_channels_and_shapes_must_agree() -> None:
    volume = Volume(voxels=np.zeros((3, 4, 4, 1), np.float32), affine=np.eye(4))
    with pytest.raises(DataError, match="3 channels"):
        prepare(volume, np.zeros((4, 4, 1), np.uint8), SETTINGS)
    with pytest.raises(GeometryError, match="label"):
        prepare(volume, np.zeros((4, 5, 1), np.uint8), SETTINGS)


def test_images_of_two_scanners_come_to_one_scale() -> None:
    """What one scanner shows in other units, and through another curve, is equal afterwards."""
    rng = np.random.default_rng(2)
    first = rng.gamma(3.0, 40.0, (1, 20, 18, 16)).astype(np.float32)
    first[:, :4] = 0
    second = 7.0 + 3.0 * first
    scale = Intensity(kind="landmarks", landmarks=((0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.85),))
    one, other = (normalise(image, scale) for image in (first, second))
    np.testing.assert_allclose(one, other, atol=1e-4)
    assert one.min() >= 0.0 and one.max() <= 1.0
    found = on_scale(landmarks(first))[0]
    own = normalise(first, Intensity(kind="landmarks", landmarks=(tuple(found.tolist()),)))
    low, *_, high = landmarks(first)[0]
    np.testing.assert_allclose(own, np.clip((first - low) / (high - low), 0, 1), atol=1e-4)


def test_an_image_of_one_value_has_no_scale_and_stays_finite() -> None:
    flat = np.full((1, 8, 8, 8), 5.0, np.float32)
    scale = Intensity(kind="landmarks", landmarks=(tuple(k / 10 for k in range(1, 10)),))
    assert np.isfinite(normalise(flat, scale)).all()


@pytest.mark.parametrize("depth", [1, 24])
def test_a_coil_s_shading_is_divided_out_and_alike_each_time(depth: int) -> None:
    pytest.importorskip("SimpleITK", reason="pip install 'fedmed[harmonise]'")
    rng = np.random.default_rng(4)
    x, y, _ = np.meshgrid(*(np.linspace(-1, 1, n) for n in (64, 56, depth)), indexing="ij")
    tissue = np.where(x**2 + y**2 < 0.7, 200.0, 0.0) + np.where((x - 0.2) ** 2 + y**2 < 0.1, 150.0, 0.0)
    shading = np.exp(0.5 * x + 0.3 * y)
    image = (tissue * shading + rng.normal(0, 2, tissue.shape))[None].astype(np.float32)
    data = Data(patch=(8, 8, 8), bias_correction=True)
    corrected = without_bias(image, (3.0, 3.0, 3.0), data)
    assert np.array_equal(corrected, without_bias(image, (3.0, 3.0, 3.0), data))
    inside = tissue == 200.0

    def spread(values: np.ndarray) -> float:
        return float(values[0][inside].std() / values[0][inside].mean())

    assert spread(corrected) < 0.35 * spread(image)


def test_bias_correction_is_part_of_how_a_case_is_prepared() -> None:
    pytest.importorskip("SimpleITK", reason="pip install 'fedmed[harmonise]'")
    rng = np.random.default_rng(1)
    voxels = (100 + rng.normal(0, 1, (1, 24, 20, 16))).astype(np.float32)
    voxels[:, :5] = 0
    volume = Volume(voxels=voxels, affine=np.diag([2.0, 2.0, 2.0, 1.0]))
    label = np.zeros(volume.shape, np.uint8)
    kind = {"kind": "window", "low": 0.0, "high": 200.0}
    plain, corrected = (
        prepare(volume, label, Data(patch=(8, 8, 8), intensity=kind, bias_correction=on)).image
        for on in (False, True)
    )
    assert not np.array_equal(plain, corrected)
