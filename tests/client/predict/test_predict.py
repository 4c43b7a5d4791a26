"""A released model on a study: evaluation's own mask, bit for bit, in an object that others read as it was written."""

from __future__ import annotations

import json
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
import torch
from pydicom.uid import generate_uid

from fedmed_client.data.cases import find_cases
from fedmed_client.data.cohort import open_cohort
from fedmed_client.data.preprocess import prepare, restored
from fedmed_client.data.scan import scan
from fedmed_client.data.seg import read_seg, segment_names
from fedmed_client.data.series import load_series
from fedmed_client.data.volume import Volume
from fedmed_client.predict.apply import predict
from fedmed_client.predict.coding import OWN_SCHEME, coded
from fedmed_client.predict.released import Released, open_ensemble, open_released
from fedmed_client.predict.segmentation import Provenance, write_segmentation
from fedmed_client.predict.study import predict_study
from fedmed_client.workbench import bench_for, numerics
from fedmed_common import params
from fedmed_common.config import Data, Experiment
from fedmed_common.errors import ConfigError
from fedmed_common.loading import load_site
from fedmed_server.state import save_parameters
from fedmed_simulations.phantom.settings import PhantomSettings
from fedmed_simulations.phantom.write import write_federation

CLASSES = ("liver", "spleen", "kidneys")


def experiment_of(model: dict[str, object] | None = None, **data: object) -> Experiment:
    return Experiment.model_validate(
        {
            "name": "organs",
            "rounds": 1,
            "task": {"classes": CLASSES, "dimensions": 3},
            "data": {
                "patch": [16, 16, 16],
                "intensity": {"kind": "window", "low": -200, "high": 300},
                **data,
            },
            "model": model or {"name": "unet", "channels": [4, 8]},
            "train": {"device": "cpu", "steps": 1, "batch_size": 1},
        }
    )


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A synthetic hospital of two patients with CT."""
    folder = tmp_path_factory.mktemp("phantom")
    settings = PhantomSettings(sites=1, patients=2, shape=(48, 40, 20), vacant=0, unannotated=0)
    write_federation(folder / "made", settings, workers=1, progress=False)
    (site,) = (entry for entry in (folder / "made").iterdir() if entry.is_dir())
    return site


def released(experiment: Experiment, folder: Path, seed: int = 0, name: str = "best") -> Released:
    """A model with random weights, published as a run does."""
    torch.manual_seed(seed)
    bench = bench_for(experiment.order_text())
    with torch.no_grad():
        for parameter in bench.model.parameters():
            parameter.normal_(0, 0.5)
    about = {"experiment": experiment.order_text(), "run": f"run-{seed}", "round": "7", "decision": "{}"}
    file = folder / "models" / f"{name}.safetensors"
    save_parameters(file, params.from_model(bench.model), about)
    return open_released(file)


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"crop_to_foreground": True},
        {"spacing_mm": [9.0, 9.0, 12.0]},
        {"crop_to_foreground": True, "spacing_mm": [7.0, 8.0, 15.0]},
    ],
)
def test_a_prediction_is_evaluations_own_bit_for_bit(
    data: dict[str, object], hospital: Path, tmp_path: Path
) -> None:
    experiment = experiment_of(**data)
    model = released(experiment, tmp_path)
    site = load_site(hospital / "site.toml")
    cohort = open_cohort(site, experiment, tmp_path / "site")
    bench = bench_for(experiment.order_text())
    params.to_model(model.parameters, bench.model)
    found = sorted(find_cases(site, experiment).cases, key=lambda case: case.patient)
    images = {case.image.tobytes(): case for case in cohort.cases}
    for raw in found:
        volume, label = raw.load()
        case = images[prepare(volume, label, experiment.data).image.tobytes()]
        with numerics(experiment, bench.device):
            measured = bench.task.decided(bench.model, case, bench.device, {})
        ours = predict([model], volume)
        assert len(np.unique(measured)) > 1
        assert np.array_equal(ours.label, restored(measured, volume, experiment.data))
        assert ours.label.shape == volume.shape


def test_the_way_back_undoes_axes_flips_crop_and_voxel_size() -> None:
    rng = np.random.default_rng(0)
    voxels = rng.normal(100, 5, (1, 12, 10, 8)).astype(np.float32)
    voxels[:, :2] = voxels[:, :, 8:] = 0
    affine = np.array([[0, 0, 3.0, 5], [-2.0, 0, 0, 7], [0, -1.5, 0, 9], [0, 0, 0, 1]])
    volume = Volume(voxels=voxels, affine=affine)
    for settings in ({}, {"crop_to_foreground": True}):
        data = Data(patch=(8, 8, 8), channels=1, intensity={"kind": "scale"}, **settings)
        image = prepare(volume, np.zeros(volume.shape, np.uint8), data).image[0]
        back = restored(np.round(255 * image).astype(np.uint8), volume, data)
        inside = back > 0
        assert np.array_equal(back[inside], np.round(voxels[0][inside]).astype(np.uint8))
        assert inside[3:, :7].all()


def test_what_is_written_is_what_others_read(hospital: Path, tmp_path: Path) -> None:
    model = released(experiment_of(), tmp_path)
    site = load_site(hospital / "site.toml")
    outcomes = list(predict_study(hospital / "dicom", [model], tmp_path / "out", site.data))
    assert len(outcomes) == 2 and not any(outcome.problem for outcome in outcomes)
    series = {one.uid: one for one in scan(hospital / "dicom").series}
    for outcome in outcomes:
        (file,) = outcome.files
        volume = load_series(series[outcome.series])
        label = predict([model], volume).label
        names = [names[0] for names in segment_names(file)]
        for name, mask in zip(names, read_seg(file, volume), strict=True):
            assert np.array_equal(mask, label == CLASSES.index(name) + 1)
        theirs = highdicom.seg.segread(file)
        read = theirs.get_volume(combine_segments=False)
        total = sum(int((label == CLASSES.index(name) + 1).sum()) for name in names)
        assert int(read.array.sum()) == total
        header = pydicom.dcmread(file)
        assert header.PatientID == pydicom.dcmread(series[outcome.series].files[0]).PatientID
        said = header.SegmentSequence[0].SegmentationAlgorithmIdentificationSequence[0]
        assert model.digest in said.AlgorithmParameters and "run-0" in said.AlgorithmParameters
        assert header.SegmentSequence[0].SegmentAlgorithmType == "AUTOMATIC"


def test_several_looks_say_how_sure_they_are(hospital: Path, tmp_path: Path) -> None:
    experiment = experiment_of()
    models = [released(experiment, tmp_path / str(seed), seed) for seed in (1, 2)]
    volume, _ = find_cases(load_site(hospital / "site.toml"), experiment).cases[0].load()
    once = predict([models[0]], volume)
    assert once.doubt is None and once.looks == 1
    both = predict(models, volume, flips=True)
    assert both.looks == 8 and both.doubt is not None
    assert float(both.doubt.min()) >= 0 and float(both.doubt.max()) <= 1 + 1e-6
    twice = predict([models[0], models[0]], volume)
    assert np.array_equal(twice.label, once.label)


def test_classes_are_coded_in_snomed_where_it_has_them() -> None:
    assert (coded("liver").kind.value, coded("liver").kind.scheme_designator) == ("10200004", "SCT")
    assert coded("kidneys").kind.meaning == "Kidney"
    lesion = coded("liver_lesion")
    assert lesion.kind.meaning == "Lesion" and lesion.region is not None and lesion.region.meaning == "Liver"
    assert coded("Zorb 7").kind.scheme_designator == OWN_SCHEME


def test_what_is_no_model_is_named_with_the_fix(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no run's folder"):
        open_released(tmp_path)
    (tmp_path / "a.safetensors").write_bytes(b"no")
    with pytest.raises(ConfigError, match="no model that a run published"):
        open_released(tmp_path / "a.safetensors")
    first, other = experiment_of(), experiment_of(crop_to_foreground=True)
    files = [released(one, tmp_path / str(number)).file for number, one in enumerate((first, other))]
    with pytest.raises(ConfigError, match="another preparation"):
        open_ensemble(files)


def test_the_header_of_a_published_model_says_what_made_it(tmp_path: Path) -> None:
    model = released(experiment_of(), tmp_path)
    assert (model.run, model.round, model.experiment.name) == ("run-0", 7, "organs")
    assert json.loads(model.order_text)["name"] == "organs"


@pytest.mark.parametrize("kind", ["tilted", "oblique", "reversed", "single", "no patient"])
def test_a_segmentation_lies_where_its_images_lie(kind: str, tmp_path: Path) -> None:
    files = _made(kind, tmp_path / "in")
    (series,) = scan(tmp_path / "in").series
    volume = load_series(series)
    rng = np.random.default_rng(3)
    label = rng.integers(0, 3, volume.shape).astype(np.uint8)
    model = released(experiment_of(), tmp_path)
    path = write_segmentation(label, series, Provenance(models=[model], looks=1), tmp_path / "out")
    assert path is not None and len(files) == len(series.files)
    for number, mask in enumerate(read_seg(path, volume), start=1):
        assert np.array_equal(mask, label == number)
    header = pydicom.dcmread(path)
    places = {
        tuple(float(part) for part in frame.PlanePositionSequence[0].ImagePositionPatient)
        for frame in header.PerFrameFunctionalGroupsSequence
    }
    assert places == {
        tuple(float(part) for part in pydicom.dcmread(file).ImagePositionPatient) for file in files
    }


def test_a_picture_without_a_place_is_segmented_upright(tmp_path: Path) -> None:
    _made("picture", tmp_path / "in")
    (series,) = scan(tmp_path / "in").series
    label = np.zeros(load_series(series).shape, np.uint8)
    label[2:5, 7:16] = 1
    path = write_segmentation(
        label, series, Provenance(models=[released(experiment_of(), tmp_path)], looks=1), tmp_path / "out"
    )
    assert path is not None
    written = pydicom.dcmread(path).pixel_array
    assert np.array_equal(written.reshape(written.shape[-2:]), label[..., 0])


def test_the_way_back_takes_each_voxel_from_the_nearest() -> None:
    volume = Volume(voxels=np.ones((1, 8, 6, 4), np.float32), affine=np.diag([2.0, 2.0, 4.0, 1.0]))
    data = Data(patch=(8, 8, 8), spacing_mm=(1.0, 4.0, 8.0))
    prepared = np.arange(16 * 3 * 2, dtype=np.float32).reshape(16, 3, 2)
    back = restored(prepared, volume, data)
    for x, y, z in np.ndindex(8, 6, 4):
        middles = [(np.array([x, y, z]) + 0.5)[axis] * step for axis, step in enumerate((2.0, 2.0, 4.0))]
        candidates = [
            np.argsort(np.abs((np.arange(count) + 0.5) * step - middle), kind="stable")
            for count, step, middle in zip((16, 3, 2), (1.0, 4.0, 8.0), middles, strict=True)
        ]
        allowed = {
            float(prepared[i, j, k])
            for i in candidates[0][:2]
            for j in candidates[1][:1]
            for k in candidates[2][:1]
        }
        assert float(back[x, y, z]) in allowed


def _made(kind: str, folder: Path) -> list[Path]:
    """A small series of 5 slices of 12 x 20 pixels, or a picture."""
    folder.mkdir(parents=True)
    study, series = generate_uid(), generate_uid()
    angle = 0.35 if kind == "oblique" else 0.0
    across, down = np.array([1, 0, 0.0]), np.array([0, np.cos(angle), np.sin(angle)])
    step = {"tilted": np.array([0, 1.0, 2.5]), "reversed": np.array([0, 0, -2.5])}.get(
        kind, 2.5 * np.cross(across, down)
    )
    files = []
    for number in range(1 if kind in ("single", "picture") else 5):
        dataset = pydicom.Dataset()
        dataset.file_meta = pydicom.dataset.FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        dataset.SOPClassUID = (
            pydicom.uid.SecondaryCaptureImageStorage if kind == "picture" else pydicom.uid.CTImageStorage
        )
        dataset.SOPInstanceUID, dataset.StudyInstanceUID, dataset.SeriesInstanceUID = (
            generate_uid(),
            study,
            series,
        )
        dataset.PatientID, dataset.Modality = "N-1", "OT" if kind == "picture" else "CT"
        if kind != "no patient":
            dataset.PatientName, dataset.PatientBirthDate, dataset.PatientSex = "A^B", "", "F"
            dataset.StudyID, dataset.StudyDate, dataset.StudyTime, dataset.AccessionNumber = (
                "1",
                "20240101",
                "101112",
                "",
            )
            dataset.ReferringPhysicianName = ""
        if kind != "picture":
            dataset.FrameOfReferenceUID = series
            dataset.ImagePositionPatient = [
                round(float(part), 6) for part in np.array([3.0, 4, 5]) + number * step
            ]
            dataset.ImageOrientationPatient = [round(float(part), 9) for part in (*across, *down)]
            dataset.PixelSpacing = [0.8, 0.9]
            dataset.SpacingBetweenSlices = 7
        pixels = np.random.default_rng(number).integers(0, 1000, (12, 20)).astype(np.int16)
        dataset.set_pixel_data(pixels, "MONOCHROME2", 16, generate_instance_uid=False)
        files.append(folder / f"{number}.dcm")
        dataset.save_as(files[-1], enforce_file_format=True)
    return files
