"""Cases of several series: on one grid, in the experiment's order, with what is missing known as missing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
from pydantic import ValidationError
from pydicom.uid import generate_uid
from scipy.spatial.transform import Rotation
from tests.client.predict.test_predict import released

from fedmed_client.data.cases import find_cases
from fedmed_client.data.cohort import open_cohort
from fedmed_client.data.modalities import on_grid, rigid
from fedmed_client.data.samplers import build_sampler
from fedmed_client.data.volume import Volume
from fedmed_client.data.wavelets import fused
from fedmed_client.predict.study import predict_study
from fedmed_common.config import Experiment, Fusion, Site
from fedmed_common.errors import ConfigError, DataError
from fedmed_common.loading import validate
from fedmed_server.app import RunRequest
from fedmed_simulations.checks import check_experiment
from fedmed_simulations.engines import run_inline
from fedmed_simulations.federation import make_homes


def experiment_of(model: dict[str, Any] | None = None, **data: Any) -> Experiment:
    return Experiment.model_validate(
        {
            "name": "several",
            "rounds": 1,
            "task": {"classes": ["ball"], "dimensions": 3},
            "data": {
                "patch": [8, 8, 8],
                "channels": 2,
                "modalities": ["t1", "t2"],
                "intensity": {"kind": "zscore"},
                "splits": {"validation": 0.0, "test": 0.0},
                "augmentation": "standard",
                **data,
            },
            "model": model or {"name": "unet", "channels": [4, 8]},
            "train": {"steps": 1, "batch_size": 4, "device": "cpu"},
        }
    )


def site_of(root: Path, **data: Any) -> Site:
    modalities = {"t1": {"suffix": "_t1"}, "t2": {"suffix": "_t2"}}
    return Site.model_validate(
        {
            "name": "north",
            "data": {"format": "nifti", "root": root, "modalities": modalities, **data},
            "labels": {"ball": ["1"]},
        },
        strict=False,
    )


def ball(shape: tuple[int, ...], affine: np.ndarray, centre: np.ndarray, radius: float) -> np.ndarray:
    """Where a voxel lies within a ball in mm."""
    places = (
        np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1) @ affine[:3, :3].T
        + affine[:3, 3]
    )
    return np.asarray(np.linalg.norm(places - centre, axis=-1) < radius)


def write_nifti(folder: Path, name: str, *, with_t2: bool = True, seed: int = 0) -> None:
    """A patient: t1 and its label on one grid, t2 coarser and shifted."""
    rng = np.random.default_rng(seed)
    fine, coarse = np.diag([2.0, 2.0, 2.0, 1.0]), np.diag([3.0, 3.0, 3.0, 1.0])
    coarse[:3, 3] = 1.5
    centre = np.array([20.0, 18.0, 16.0])
    (folder / "images").mkdir(parents=True, exist_ok=True)
    (folder / "labels").mkdir(exist_ok=True)
    label = ball((20, 18, 16), fine, centre, 9.0)
    t1 = 100 + 80 * label + rng.normal(0, 2, label.shape)
    t2 = 50 + 30 * ball((14, 12, 11), coarse, centre, 9.0) + rng.normal(0, 1, (14, 12, 11))
    nibabel.save(nibabel.Nifti1Image(t1.astype(np.float32), fine), folder / "images" / f"{name}_t1.nii.gz")
    nibabel.save(nibabel.Nifti1Image(label.astype(np.uint8), fine), folder / "labels" / f"{name}.nii.gz")
    if with_t2:
        nibabel.save(
            nibabel.Nifti1Image(t2.astype(np.float32), coarse), folder / "images" / f"{name}_t2.nii.gz"
        )


def test_a_case_has_all_its_modalities_on_the_labelled_grid(tmp_path: Path) -> None:
    write_nifti(tmp_path, "p1")
    (case,) = find_cases(site_of(tmp_path), experiment_of()).cases
    volume, label = case.load()
    assert volume.voxels.shape == (2, *label.shape)
    inside, outside = (volume.voxels[1][label == value].mean() for value in (1, 0))
    assert inside > 75 and outside < 52


def test_what_a_site_does_not_name_is_missing_and_zero(tmp_path: Path) -> None:
    write_nifti(tmp_path, "p1")
    write_nifti(tmp_path, "p2", with_t2=False)
    experiment = experiment_of()
    only = site_of(tmp_path, modalities={"t1": {"suffix": "_t1"}})
    cohort = open_cohort(only, experiment, tmp_path / "only")
    assert [bool(case.image[1].any()) for case in cohort.cases] == [False, False]
    strict = open_cohort(site_of(tmp_path), experiment, tmp_path / "strict")
    assert len(strict.cases) == 1 and "requires" in strict.skipped[0].reason
    lenient = {"t1": {"suffix": "_t1"}, "t2": {"suffix": "_t2", "required": False}}
    both = open_cohort(site_of(tmp_path, modalities=lenient), experiment, tmp_path / "lenient")
    assert sorted(bool(case.image[1].any()) for case in both.cases) == [False, True]
    assert all(case.image[0].any() for case in both.cases)


def test_each_modality_has_intensities_of_its_own(tmp_path: Path) -> None:
    write_nifti(tmp_path, "p1")
    window = {"kind": "window", "low": 0.0, "high": 100.0}
    experiment = experiment_of(intensities={"t2": window})
    (case,) = open_cohort(site_of(tmp_path), experiment, tmp_path / "cohort").cases
    assert case.image[0].min() < 0 and case.image[1].min() >= 0.0 and case.image[1].max() <= 1.0
    assert case.image[1][case.label == 1].mean() == pytest.approx(0.8, abs=0.06)


def test_patches_keep_what_is_missing_zero_and_leave_others_out(tmp_path: Path) -> None:
    write_nifti(tmp_path, "p1")
    site = site_of(tmp_path)
    cases = open_cohort(site, experiment_of(), tmp_path / "cohort").of("train")
    rng = np.random.default_rng(0)
    never = build_sampler(cases, experiment_of())
    image, _, _ = never.batch(rng)
    assert bool(image.flatten(2).any(2).all())
    often = build_sampler(cases, experiment_of(modality_dropout=0.5))
    there = np.concatenate([often.batch(rng)[0].flatten(2).any(2).numpy() for _ in range(40)])
    assert there.any(axis=1).all()
    assert 0.55 < there.mean() < 0.8
    only = site_of(tmp_path, modalities={"t1": {"suffix": "_t1"}})
    alone = build_sampler(open_cohort(only, experiment_of(), tmp_path / "only").of("train"), experiment_of())
    image, _, _ = alone.batch(rng)
    assert not image[:, 1].any() and bool(image[:, 0].any())


def test_a_turned_and_shifted_series_is_brought_back_and_alike_each_time() -> None:
    pytest.importorskip("SimpleITK", reason="pip install 'fedmed[harmonise]'")
    shape, affine = (40, 36, 30), np.diag([3.0, 3.0, 3.0, 1.0])
    centre = np.array([58.0, 52.0, 43.0])

    def head(turn: np.ndarray, shift: np.ndarray) -> np.ndarray:
        """Three balls, which tell any turn."""
        image = np.full(shape, 10.0)
        for offset, radius, value in (
            ((0, 0, 0), 36, 40.0),
            ((14, 8, 2), 9, 90.0),
            ((-12, 10, -8), 6, 150.0),
        ):
            image[ball(shape, affine, centre + turn @ np.array(offset, float) + shift, radius)] = value
        return image

    turn, shift = Rotation.from_euler("z", 6, degrees=True).as_matrix(), np.array([5.0, -4.0, 3.0])
    rng = np.random.default_rng(0)
    fixed = Volume(
        voxels=(head(np.eye(3), np.zeros(3)) + rng.normal(0, 1, shape))[None].astype(np.float32),
        affine=affine,
    )
    other = (300 - 2 * head(turn, shift) + rng.normal(0, 1, shape))[None].astype(np.float32)
    moving = Volume(voxels=other, affine=affine)
    found = rigid(moving, fixed)
    assert np.array_equal(found, rigid(moving, fixed))
    for offset in ((0.0, 0.0, 0.0), (14.0, 8.0, 2.0), (-12.0, 10.0, -8.0)):
        place = centre + np.array(offset)
        true = centre + turn @ np.array(offset) + shift
        assert np.linalg.norm((found @ [*place, 1.0])[:3] - true) < 3.0
    back = on_grid(moving, fixed, found).voxels[0]
    lesion = ball(shape, affine, centre + np.array([14.0, 8.0, 2.0]), 5)
    assert back[lesion].mean() == pytest.approx(120, abs=10)


def test_a_series_on_another_grid_is_read_between_its_voxels() -> None:
    affine, coarse = np.diag([1.0, 1.0, 1.0, 1.0]), np.diag([2.0, 2.0, 2.0, 1.0])
    ramp = np.fromfunction(lambda x, y, z: 2 * x + 4 * y + 6 * z, (8, 8, 8))
    moving = Volume(voxels=ramp[None].astype(np.float32), affine=coarse)
    target = Volume(voxels=np.zeros((1, 15, 15, 15), np.float32), affine=affine)
    expected = np.fromfunction(lambda x, y, z: x + 2 * y + 3 * z, (15, 15, 15))
    np.testing.assert_allclose(on_grid(moving, target, np.eye(4)).voxels[0], expected, atol=1e-4)


def test_a_single_oblique_slice_is_not_lost_to_rounding() -> None:
    turn = Rotation.from_euler("xyz", [20, 30, 10], degrees=True).as_matrix()
    fine, coarse = np.eye(4), np.eye(4)
    fine[:3, :3], coarse[:3, :3] = turn * [1.0, 1.0, 5.0], turn * [2.0, 2.0, 5.0]
    fine[:3, 3] = [3.0, -7.0, 11.0]
    coarse[:3, 3] = fine[:3, 3] + turn @ [0.5, 0.5, 0.0]
    image = np.random.default_rng(0).uniform(1, 2, (1, 16, 16, 1)).astype(np.float32)
    target = Volume(voxels=np.zeros((1, 32, 32, 1), np.float32), affine=fine)
    found = on_grid(Volume(voxels=image, affine=coarse), target, np.eye(4)).voxels[0]
    assert found.shape == (32, 32, 1) and np.unique(found).size > 200
    np.testing.assert_allclose(found[::2, ::2].mean(), image.mean(), atol=0.05)


def test_beyond_its_own_edges_a_series_is_dark_and_within_them_it_is_not() -> None:
    moving = Volume(voxels=np.full((1, 4, 4, 4), 9.0, np.float32), affine=np.diag([5.0, 5.0, 5.0, 1.0]))
    moving.voxels[0, 0, 0, 0] = 1.0
    affine = np.diag([1.0, 1.0, 1.0, 1.0])
    affine[:3, 3] = -4.0
    found = on_grid(moving, Volume(voxels=np.zeros((1, 30, 30, 30), np.float32), affine=affine), np.eye(4))
    middle = found.voxels[0][:, 15, 15]
    assert (middle[:1] == 1.0).all() and (middle[2:22] == 9.0).all() and (middle[23:] == 1.0).all()
    with pytest.raises(DataError, match="lie apart"):
        on_grid(moving, Volume(voxels=moving.voxels, affine=affine + 500 * np.eye(4, k=3)), np.eye(4))


def test_the_labels_own_grid_is_the_case_s(tmp_path: Path) -> None:
    """Labels drawn on the second modality."""
    write_nifti(tmp_path, "p1")
    coarse = nibabel.load(tmp_path / "images" / "p1_t2.nii.gz")
    label = (coarse.get_fdata() > 65).astype(np.uint8)
    nibabel.save(nibabel.Nifti1Image(label, coarse.affine), tmp_path / "labels" / "p1.nii.gz")
    (case,) = find_cases(site_of(tmp_path), experiment_of()).cases
    volume, found = case.load()
    assert volume.shape == found.shape == coarse.shape
    assert volume.voxels[0][found == 1].mean() > 160


@pytest.mark.parametrize("shape", [(9, 12, 7), (16, 16, 1)])
def test_an_image_fused_with_itself_is_itself(shape: tuple[int, int, int]) -> None:
    pytest.importorskip("pywt", reason="pip install 'fedmed[harmonise]'")
    image = np.random.default_rng(0).normal(0, 1, shape).astype(np.float32)
    np.testing.assert_allclose(fused([image, image], Fusion(kind="wavelet")), image, atol=1e-5)
    assert fused([image], Fusion(kind="wavelet")) is image


def test_fused_modalities_show_the_edges_of_both(tmp_path: Path) -> None:
    pytest.importorskip("pywt", reason="pip install 'fedmed[harmonise]'")
    left, right = np.zeros((16, 16, 1), np.float32), np.zeros((16, 16, 1), np.float32)
    left[4], right[12] = 8.0, 8.0
    both = fused([left, right], Fusion(kind="wavelet", levels=1))
    for row in (4, 12):
        assert both[row].mean() > 2 * max(both[row - 3].mean(), 0.5)
    write_nifti(tmp_path, "p1")
    experiment = experiment_of(channels=1, fusion={"kind": "wavelet"})
    (case,) = open_cohort(site_of(tmp_path), experiment, tmp_path / "cohort").cases
    assert case.image.shape[0] == 1


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ({"bias_correction": ["pet"]}, "no modality"),
        ({"channels": 3}, "set channels = 2"),
        ({"modalities": ["t1", "t1"]}, "named twice"),
        ({"intensities": {"pet": {}}}, "no modality"),
        ({"fusion": {"kind": "wavelet"}}, "set channels = 1"),
        ({"modalities": [], "channels": 1, "modality_dropout": 0.5}, "name two or more"),
    ],
)
def test_what_does_not_fit_together_is_named(data: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        experiment_of(**data)


def write_series(
    folder: Path, uids: tuple[str, str, str], description: str, spacing: float, count: int
) -> None:
    """CT slices of a ball, in the study and frame of the uids."""
    affine = np.diag([spacing, spacing, spacing, 1.0])
    mask = ball((count, count, count), affine, np.full(3, 24.0), 12.0)
    folder.mkdir(parents=True)
    for number in range(count):
        dataset = pydicom.Dataset()
        dataset.file_meta = pydicom.dataset.FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        dataset.SOPClassUID, dataset.SOPInstanceUID = pydicom.uid.CTImageStorage, generate_uid()
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.FrameOfReferenceUID = uids
        dataset.PatientID, dataset.PatientName, dataset.Modality = "P-1", "A^B", "CT"
        dataset.SeriesDescription, dataset.InstanceNumber = description, number + 1
        dataset.ImagePositionPatient = [0.0, 0.0, number * spacing]
        dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        dataset.PixelSpacing, dataset.SliceThickness = [spacing, spacing], spacing
        dataset.Rows = dataset.Columns = count
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = (
            16,
            16,
            15,
            0,
        )
        dataset.RescaleSlope, dataset.RescaleIntercept = 1, 0
        dataset.PixelData = (100 + 200 * mask[:, :, number].T).astype(np.uint16).tobytes()
        dataset.save_as(folder / f"{number}.dcm", enforce_file_format=True)


def dicom_site(root: Path, **data: Any) -> Site:
    modalities = {"t1": {"series_description": "^T1"}, "t2": {"series_description": "T2$"}}
    fields = {"format": "dicom", "root": root, "modalities": modalities, **data}
    return Site.model_validate({"name": "north", "data": fields, "labels": {"ball": ["1"]}}, strict=False)


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """T1 of 24 slices with a label, and a coarser T2 of the same study."""
    root, of_study, frame = tmp_path / "dicom", generate_uid(), generate_uid()
    write_series(root / "t1", (of_study, generate_uid(), frame), "T1 post", 2.0, 24)
    write_series(root / "t2", (of_study, generate_uid(), frame), "ax T2", 4.0, 12)
    affine = np.diag([-2.0, -2.0, 2.0, 1.0])
    label = ball((24, 24, 24), np.diag([2.0, 2.0, 2.0, 1.0]), np.full(3, 24.0), 12.0).astype(np.uint8)
    nibabel.save(nibabel.Nifti1Image(label, affine), root / "t1" / "labels.nii.gz")
    return root


def test_series_of_a_study_make_a_case_on_the_labelled_one(study: Path) -> None:
    (case,) = find_cases(dicom_site(study), experiment_of()).cases
    volume, label = case.load()
    assert volume.voxels.shape == (2, 24, 24, 24)
    for channel in volume.voxels:
        assert channel[label == 1].mean() > 250 and channel[label == 0].mean() < 125


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"t1": {"series_description": "T"}, "t2": {"series_description": "T2$"}}, "fits the modalities"),
        ({"t2": {"series_description": "T2$"}}, "no label belongs"),
        (
            {"pd": {"series_description": "^T1"}, "t2": {"series_description": "T2$"}},
            "none of the experiment's",
        ),
        ({"t1": {"series_description": "^T1"}, "t2": {"series_description": "PD"}}, "has no 't2'"),
    ],
)
def test_a_case_that_cannot_be_put_together_is_named(
    study: Path, changed: dict[str, Any], sentence: str
) -> None:
    found = find_cases(dicom_site(study, modalities=changed), experiment_of())
    assert not found.cases or "fits" in sentence
    assert any(sentence in item.reason for item in found.skipped)


def test_series_of_another_frame_are_not_laid_over_one_another(tmp_path: Path, study: Path) -> None:
    for file in (study / "t2").glob("*.dcm"):
        dataset = pydicom.dcmread(file)
        dataset.FrameOfReferenceUID = "1.2.3.4"
        dataset.save_as(file)
    found = find_cases(dicom_site(study), experiment_of())
    assert not found.cases and any("another frame of reference" in item.reason for item in found.skipped)
    assert find_cases(dicom_site(study, registration="rigid"), experiment_of()).cases


@pytest.mark.parametrize("model", ["unet", "hemis", "late_fusion"])
def test_a_study_is_predicted_from_all_its_modalities(model: str, study: Path, tmp_path: Path) -> None:
    experiment = experiment_of({"name": model, "channels": [4, 8]})
    site = dicom_site(study)
    for seed in range(5):
        made = released(experiment, tmp_path / f"{model}-{seed}", seed)
        (outcome,) = predict_study(study, [made], tmp_path / "out", site.data)
        assert not outcome.problem and outcome.description == "T1 post"
        if outcome.files:
            break
    (file,) = outcome.files
    header = pydicom.dcmread(file)
    t1 = {pydicom.dcmread(one).SOPInstanceUID for one in (study / "t1").glob("*.dcm")}
    (referenced,) = header.ReferencedSeriesSequence
    assert {one.ReferencedSOPInstanceUID for one in referenced.ReferencedInstanceSequence} <= t1
    with pytest.raises(ConfigError, match="which series is of which modality"):
        list(predict_study(study, [made], tmp_path / "out", None))


@pytest.mark.parametrize("model", ["hemis", "late_fusion"])
def test_a_federation_learns_though_a_site_lacks_a_modality(model: str, tmp_path: Path) -> None:
    for name, count in (("north", 4), ("south", 3)):
        for number in range(count):
            write_nifti(tmp_path / name, f"p{number}", with_t2=name == "north", seed=number)
    modalities = {"t1": {"suffix": "_t1"}, "t2": {"suffix": "_t2"}}
    sites = [
        {
            "name": name,
            "data": {"format": "nifti", "root": str(tmp_path / name), "modalities": of_site},
            "labels": {"ball": ["1"]},
            "policy": {"least_patients": 1},
        }
        for name, of_site in (("north", modalities), ("south", {"t1": modalities["t1"]}))
    ]
    asked = experiment_of({"name": model, "channels": [4, 8]}, modality_dropout=0.3)
    changed = {"rounds": 3, "train": {"steps": 12, "batch_size": 4, "learning_rate": 1e-2, "threads": 1}}
    document = {**asked.model_dump(mode="json"), **changed, "simulation": {"sites": sites}}
    document["data"]["splits"] = {"validation": 0.25, "test": 0.25}
    experiment = validate(Experiment, document, "several.toml")
    homes = make_homes(
        experiment, check_experiment(experiment, tmp_path / "several.toml"), tmp_path / "sites"
    )
    folder = tmp_path / "run"
    folder.mkdir()
    ended = []
    request = RunRequest(experiment=experiment, folder=folder, command="test", sites=2, on_round=ended.append)
    run_inline(homes, request)
    losses = [
        sum(result.metrics["loss"][0] for result in record.train)
        / sum(result.metrics["loss"][1] for result in record.train)
        for record in ended
    ]
    assert losses[-1] < 0.8 * losses[0]
