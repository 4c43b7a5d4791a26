"""NIfTI images and labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nibabel.orientations import apply_orientation, inv_ornt_aff

from fedmed_client.data.nifti import read_nifti, read_nifti_label
from fedmed_client.data.volume import Volume
from fedmed_common.errors import GeometryError, LabelError, UnreadableFile

OBLIQUE = np.array([[0.8, -0.3, 0.1, 5.0], [0.3, 0.9, 0.2, -7.0], [-0.1, -0.2, 2.5, 40.0], [0, 0, 0, 1.0]])
SHAPE = (4, 5, 3)


def save(path: Path, values: np.ndarray[Any, Any], affine: np.ndarray[Any, Any] = OBLIQUE) -> Path:
    nibabel.Nifti1Image(values, affine).to_filename(path)
    return path


def volume() -> Volume:
    return Volume(voxels=np.zeros((1, *SHAPE), np.float32), affine=OBLIQUE)


def numbers(dtype: Any = np.uint8) -> np.ndarray[Any, Any]:
    return np.arange(np.prod(SHAPE)).reshape(SHAPE).astype(dtype)


def test_an_image_keeps_values_and_place(tmp_path: Path) -> None:
    read = read_nifti(save(tmp_path / "a.nii.gz", numbers(np.int16)))
    assert read.voxels.dtype == np.float32
    np.testing.assert_array_equal(read.voxels[0], numbers())
    np.testing.assert_allclose(read.affine, OBLIQUE, atol=1e-5)


def test_a_fourth_and_a_fifth_axis_are_channels(tmp_path: Path) -> None:
    values = np.stack([numbers(np.float32), -numbers(np.float32)], axis=-1)
    assert read_nifti(save(tmp_path / "a.nii", values)).voxels.shape == (2, *SHAPE)
    read = read_nifti(save(tmp_path / "b.nii", values[..., None, :]))
    np.testing.assert_array_equal(read.voxels, np.moveaxis(values, 3, 0))


def test_the_scaling_of_the_file_is_applied(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(numbers(np.int16), OBLIQUE)
    image.header.set_slope_inter(2.0, -1024.0)
    image.to_filename(tmp_path / "a.nii")
    raw = nibabel.load(tmp_path / "a.nii").get_fdata()
    np.testing.assert_allclose(read_nifti(tmp_path / "a.nii").voxels[0], raw)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(axes=st.permutations(range(3)), flips=st.tuples(*[st.sampled_from([1, -1])] * 3))
def test_a_turned_label_is_turned_back(tmp_path: Path, axes: list[int], flips: tuple[int, ...]) -> None:
    orientation = np.array(list(zip(axes, flips, strict=True)))
    turned = apply_orientation(numbers(), orientation)
    path = save(tmp_path / "a.nii", np.asarray(turned), OBLIQUE @ inv_ornt_aff(orientation, SHAPE))
    np.testing.assert_array_equal(read_nifti_label(path, volume()), numbers())


def test_whole_numbers_stored_as_floats_are_labels(tmp_path: Path) -> None:
    label = read_nifti_label(save(tmp_path / "a.nii", numbers(np.float32)), volume())
    assert label.dtype == np.int64
    np.testing.assert_array_equal(label, numbers())


@pytest.mark.parametrize("broken", [0.5, -1.0, np.nan])
def test_other_values_are_refused(tmp_path: Path, broken: float) -> None:
    values = numbers(np.float32)
    values[1, 1, 1] = broken
    with pytest.raises(LabelError):
        read_nifti_label(save(tmp_path / "a.nii", values), volume())


def test_another_grid_is_refused(tmp_path: Path) -> None:
    finer = OBLIQUE @ np.diag([0.5, 0.5, 1, 1])
    for affine in (finer, OBLIQUE @ np.block([[np.eye(3), np.full((3, 1), 0.4)], [np.zeros(3), 1]])):
        with pytest.raises(GeometryError, match="affine"):
            read_nifti_label(save(tmp_path / "a.nii", numbers(), affine), volume())
    with pytest.raises(GeometryError, match="covers"):
        read_nifti_label(save(tmp_path / "a.nii", numbers()[:-1]), volume())


def test_files_that_are_no_image_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.nii").write_text("no image")
    whole = save(tmp_path / "a.nii", numbers()).read_bytes()
    (tmp_path / "cut.nii").write_bytes(whole[:-10])
    for name in ("text.nii", "cut.nii", "absent.nii"):
        with pytest.raises(UnreadableFile, match=name):
            read_nifti(tmp_path / name)
    with pytest.raises(UnreadableFile, match="finite"):
        read_nifti(save(tmp_path / "nan.nii", np.full(SHAPE, np.nan, np.float32)))
    with pytest.raises(LabelError, match="channels"):
        read_nifti_label(save(tmp_path / "b.nii", np.zeros((*SHAPE, 2), np.uint8)), volume())


def test_real_labels_lie_on_their_images(fedmed_data: Path) -> None:
    folder = fedmed_data / "volumes" / "hippocampus"
    for image in sorted((folder / "images").iterdir())[:5]:
        loaded = read_nifti(image)
        label = read_nifti_label(folder / "labels" / image.name, loaded)
        assert label.shape == loaded.shape
        assert set(np.unique(label)) == {0, 1, 2}
