"""Faults planted in a synthetic hospital: each is found, at the right case, and a clean hospital raises no alarm."""

from __future__ import annotations

import gzip
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom.uid import generate_uid

from fedmed_client.data.cases import find_cases
from fedmed_client.preflight.page import html
from fedmed_client.preflight.run import Preflight, preflight
from fedmed_common.config import Experiment, Site
from fedmed_common.loading import load_site
from fedmed_simulations.phantom.settings import ORGANS, PhantomSettings
from fedmed_simulations.phantom.write import write_federation

EXPERIMENT = Experiment.model_validate(
    {
        "name": "organs",
        "rounds": 1,
        "task": {"classes": ORGANS, "dimensions": 3},
        "data": {"patch": [32, 32, 16], "spacing_mm": [6.0, 6.0, 8.0]},
    }
)
PATIENTS = 26


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hospital with a folder a patient: the series, and its label as NIfTI beside it."""
    folder = tmp_path_factory.mktemp("phantom")
    settings = PhantomSettings(
        sites=1, patients=PATIENTS, shape=(72, 72, 36), vacant=0, unannotated=0, head_share=0.3, seed=5
    )
    write_federation(folder / "made", settings, workers=0, progress=False)
    (made,) = (entry for entry in (folder / "made").iterdir() if entry.is_dir())
    site = load_site(made / "site.toml")
    out = folder / "clean"
    for number, case in enumerate(find_cases(site, EXPERIMENT).cases):
        patient = out / f"patient-{number:02}"
        patient.mkdir(parents=True)
        volume, label = case.load()
        for file in case.path.parent.iterdir():
            if file.suffix == ".dcm" and pydicom.dcmread(file, stop_before_pixels=True).Modality == "CT":
                shutil.copy(file, patient)
        _write_label(patient, label, volume.affine)
    return out


def _site(root: Path) -> Site:
    return Site.model_validate(
        {
            "name": "north",
            "data": {"format": "dicom", "root": str(root), "modality": "CT"},
            "labels": {name: [str(number)] for number, name in enumerate(ORGANS, start=1)},
        }
    )


def _write_label(patient: Path, label: NDArray[np.uint8], affine: NDArray[np.float64]) -> None:
    image = nibabel.Nifti1Image(np.ascontiguousarray(label), affine)
    (patient / "labels.nii.gz").write_bytes(gzip.compress(image.to_bytes()))


def _label(patient: Path) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    image = nibabel.load(patient / "labels.nii.gz")
    return np.asarray(image.dataobj).astype(np.uint8), image.affine


def _relabelled(change: Callable[[NDArray[np.uint8]], NDArray[np.uint8]]) -> Callable[[Path], None]:
    def plant(patient: Path) -> None:
        label, affine = _label(patient)
        _write_label(patient, change(label), affine)

    return plant


def _redone(change: Callable[[pydicom.Dataset], None]) -> Callable[[Path], None]:
    def plant(patient: Path) -> None:
        for file in patient.glob("*.dcm"):
            dataset = pydicom.dcmread(file)
            change(dataset)
            dataset.save_as(file)

    return plant


def _outside(label: NDArray[np.uint8]) -> NDArray[np.uint8]:
    label[:3, :12, 8:28] = 1
    return label


def _specks(label: NDArray[np.uint8]) -> NDArray[np.uint8]:
    free = np.argwhere(label == 0)
    inner = free[(np.abs(free - np.array(label.shape) / 2) < np.array(label.shape) / 6).all(axis=1)]
    for x, y, z in inner[:: max(1, len(inner) // 14)]:
        label[x, y, z] = 4
    return label


def _without(number: int) -> Callable[[NDArray[np.uint8]], NDArray[np.uint8]]:
    return lambda label: np.where(label == number, 0, label).astype(np.uint8)


def _larger(patient: Path) -> None:
    """Every voxel twice as large along all axes, in the image and in its label."""

    def change(dataset: pydicom.Dataset) -> None:
        dataset.PixelSpacing = [2 * float(step) for step in dataset.PixelSpacing]
        dataset.ImagePositionPatient = [2 * float(place) for place in dataset.ImagePositionPatient]

    _redone(change)(patient)
    label, affine = _label(patient)
    _write_label(patient, label, np.diag([2.0, 2.0, 2.0, 1.0]) @ affine)


def _without_offset(dataset: pydicom.Dataset) -> None:
    """Air at 0, as where RescaleIntercept was lost."""
    dataset.RescaleIntercept = float(dataset.RescaleIntercept) + 1024


def _copied(patient: Path) -> None:
    """The folder of another patient, under this one's name, with UIDs of its own."""
    number = pydicom.dcmread(next(patient.glob("*.dcm")), stop_before_pixels=True).PatientID
    other = patient.parent / "patient-25"
    shutil.rmtree(patient)
    shutil.copytree(other, patient)
    uid = generate_uid()

    def change(dataset: pydicom.Dataset) -> None:
        dataset.PatientID, dataset.SeriesInstanceUID, dataset.FrameOfReferenceUID = number, uid, uid
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()

    _redone(change)(patient)


def _truncated(patient: Path) -> None:
    file = sorted(patient.glob("*.dcm"))[17]
    file.write_bytes(file.read_bytes()[:-900])


FAULTS: dict[str, tuple[Callable[[Path], None], set[str]]] = {
    "patient-00": (_relabelled(lambda label: label[::-1]), {"swapped-sides"}),
    "patient-01": (_relabelled(lambda label: np.roll(label, 4, axis=0)), {"shifted-label"}),
    "patient-02": (_relabelled(lambda label: np.roll(label, 1, axis=2)), {"shifted-label"}),
    "patient-03": (_relabelled(np.zeros_like), {"empty-label"}),
    "patient-04": (_relabelled(_outside), {"outside-body"}),
    "patient-05": (_relabelled(_specks), {"specks"}),
    "patient-06": (_copied, {"copy"}),
    "patient-07": (lambda patient: sorted(patient.glob("*.dcm"))[17].unlink(), {"geometry"}),
    "patient-08": (_larger, {"wrong-size"}),
    "patient-09": (_redone(_without_offset), {"not-hounsfield"}),
    "patient-10": (_truncated, {"geometry"}),
    "patient-11": (_relabelled(_without(1)), {"missing-class"}),
    "patient-12": (_relabelled(lambda label: label[:, :, ::-1]), {"elsewhere", "shifted-label"}),
}
"""By patient: what is done to it, and the code by which it has to be found."""


def _of_cases(found: Preflight) -> dict[str, set[str]]:
    codes: dict[str, set[str]] = {}
    for finding in found.findings:
        if finding.case is not None and finding.level != "pass":
            codes.setdefault(finding.case.parent.name, set()).add(finding.code)
    return codes


def test_a_clean_hospital_raises_no_alarm(clean: Path, tmp_path: Path) -> None:
    found = preflight(_site(clean), EXPERIMENT, tmp_path)
    assert len(found.cases) == PATIENTS and not found.unread
    assert _of_cases(found) == {}
    assert sum(found.splits.values()) == PATIENTS and found.presence == dict.fromkeys(ORGANS, PATIENTS)


def test_every_planted_fault_is_found_at_its_case(clean: Path, tmp_path: Path) -> None:
    root = tmp_path / "site"
    shutil.copytree(clean, root)
    for name, (plant, _) in FAULTS.items():
        plant(root / name)
    found = preflight(_site(root), EXPERIMENT, tmp_path)
    codes = _of_cases(found)
    assert {
        name: codes.get(name, set()) & wanted
        for name, (_, wanted) in FAULTS.items()
        if not codes.get(name, set()) & wanted
    } == {}
    copies = {"patient-06", "patient-25"}
    assert set(codes) - set(FAULTS) - copies == set()
    assert found.level == "fail"
    page = html(found, root)
    assert "patient-08" in page and page.count("<img") >= len(found.cases)
    assert "http://" not in page.replace("http://www.w3.org/2000/svg", "")
