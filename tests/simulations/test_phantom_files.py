"""What is on disk is valid DICOM that says what was rendered: checked by readers that share no code with the writer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import highdicom
import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK
from highdicom._standard_utils import get_iod_module_map, get_module_attribute_map, get_sop_class_iod_map
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from matplotlib.path import Path as Polygon
from numpy.typing import NDArray

from fedmed_client.data.cases import find_cases
from fedmed_client.predict.structures import trace
from fedmed_common.config import Experiment
from fedmed_common.loading import load_site
from fedmed_simulations.phantom.anatomy import CLASS_OF
from fedmed_simulations.phantom.labels import LPS_TO_RAS, segments
from fedmed_simulations.phantom.patient import draw_scan
from fedmed_simulations.phantom.plan import PatientPlan, SitePlan, plan_federation
from fedmed_simulations.phantom.scanner import Scan
from fedmed_simulations.phantom.settings import LESIONS, ORGANS, PhantomSettings
from fedmed_simulations.phantom.write import write_federation

SETTINGS = PhantomSettings(
    sites=8, patients=1, shape=(40, 36, 20), seed=2, head_share=0.9, imbalance=2.0, vacant=0
)
PLANS = plan_federation(SETTINGS)
each_site = pytest.mark.parametrize("site", PLANS, ids=[site.name for site in PLANS])


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantom") / "federation"
    assert write_federation(folder, SETTINGS, workers=1)
    return folder


def _patient(federation: Path, site: SitePlan) -> tuple[Path, Path, Scan]:
    """The folders of images and labels, and what they should hold."""
    patient = site.patients[0]
    folder = federation / site.name / "dicom" / patient.id
    return (
        folder / f"{site.scanner.modality.lower()}-abdomen",
        folder / "labels",
        draw_scan(SETTINGS, site, patient),
    )


def _shown(scan: Scan, site: SitePlan) -> NDArray[np.float64]:
    """The values that the stored numbers stand for, MONOCHROME1 turned so that more is brighter."""
    stored = sum(site.scanner.stored_range) - scan.stored if site.scanner.inverted else scan.stored
    return np.asarray(stored * site.scanner.slope + site.scanner.intercept, np.float64)


@each_site
def test_images_read_by_pydicom(federation: Path, site: SitePlan) -> None:
    series, _, scan = _patient(federation, site)
    images = [pydicom.dcmread(file) for file in sorted(series.glob("*.dcm"))]
    assert len({image.SOPInstanceUID for image in images}) == len(images) == SETTINGS.shape[2]
    assert (
        len(
            {(image.StudyInstanceUID, image.SeriesInstanceUID, image.FrameOfReferenceUID) for image in images}
        )
        == 1
    )
    if site.scanner.from_top:
        images.reverse()
    for k, image in enumerate(images):
        assert image.file_meta.TransferSyntaxUID == site.scanner.transfer_syntax
        assert image.PhotometricInterpretation == ("MONOCHROME1" if site.scanner.inverted else "MONOCHROME2")
        assert np.array_equal(image.pixel_array, scan.stored[:, :, k].T)
        assert np.allclose(image.ImagePositionPatient, (scan.affine @ (0, 0, k, 1))[:3], atol=1e-5)


@each_site
def test_images_read_by_an_independent_series_reader(federation: Path, site: SitePlan) -> None:
    series, _, scan = _patient(federation, site)
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(series)))
    image = reader.Execute()
    assert image.GetSize() == SETTINGS.shape
    values = SimpleITK.GetArrayFromImage(image).transpose(2, 1, 0)
    assert np.array_equal(values, _shown(scan, site))
    directions = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    assert np.allclose(directions, scan.affine[:3, :3], atol=1e-4)
    assert np.allclose(image.GetOrigin(), scan.affine[:3, 3], atol=1e-4)


@each_site
def test_every_object_has_what_its_modules_demand(federation: Path, site: SitePlan) -> None:
    series, labels, _ = _patient(federation, site)
    for file in (next(series.glob("*.dcm")), *labels.glob("*.dcm")):
        dataset = pydicom.dcmread(file)
        modules = get_iod_module_map()[get_sop_class_iod_map()[dataset.SOPClassUID]]
        for module in (module["key"] for module in modules if module["usage"] == "M"):
            for attribute in get_module_attribute_map()[module]:
                if attribute["path"] or attribute["type"] not in {"1", "2"}:
                    continue
                assert attribute["keyword"] in dataset, (module, attribute["keyword"])
                if attribute["type"] == "1":
                    assert dataset[attribute["keyword"]].value not in (None, "", []), attribute["keyword"]


@each_site
def test_labels_belong_to_their_images(federation: Path, site: SitePlan) -> None:
    series, labels, _ = _patient(federation, site)
    images = [pydicom.dcmread(file, stop_before_pixels=True) for file in series.glob("*.dcm")]
    for file in labels.glob("*.dcm"):
        label = pydicom.dcmread(file)
        for keyword in ("PatientID", "PatientName", "StudyInstanceUID", "FrameOfReferenceUID", "StudyDate"):
            assert label[keyword].value == images[0][keyword].value
        assert str(images[0].SeriesInstanceUID) in label.to_json()
        assert label.SeriesInstanceUID != images[0].SeriesInstanceUID


@each_site
def test_labels_give_the_mask_back(federation: Path, site: SitePlan) -> None:
    _, labels, scan = _patient(federation, site)
    series, _, _ = _patient(federation, site)
    wanted = {segment.name: segment.mask for segment in segments(scan, site)}
    if site.label_format == "nifti":
        found = dict(_read_nifti(series / "labels.nii.gz", scan))
    elif site.label_format == "rtstruct":
        found = dict(_read_rtstruct(labels / "rtstruct.dcm", scan))
    else:
        found = dict(_read_seg(labels / "seg.dcm", series, scan))
    assert list(found) == list(wanted)
    for name, mask in wanted.items():
        assert np.array_equal(found[name], mask), name


def _read_seg(file: Path, series: Path, scan: Scan) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    """By the slices that the frames refer to, and once more by the place of the frames."""
    seg = highdicom.seg.segread(file)
    images = [pydicom.dcmread(image) for image in series.glob("*.dcm")]
    images.sort(key=lambda image: float(np.dot(image.ImagePositionPatient, scan.affine[:3, 2])))
    instances = [image.SOPInstanceUID for image in images]
    by_reference = seg.get_pixels_by_source_instance(instances, assert_missing_frames_are_empty=True)
    volume = seg.get_volume()
    place = np.linalg.inv(scan.affine) @ volume.affine
    for number, frames in zip(seg.segment_numbers, np.moveaxis(by_reference, -1, 0), strict=True):
        mask = frames.astype(bool).transpose(2, 1, 0)
        indices = place[:3, :3] @ np.argwhere(volume.array[..., number - 1]).T + place[:3, 3:]
        by_place = np.zeros_like(mask)
        by_place[tuple(np.rint(indices).astype(int))] = True
        assert np.array_equal(by_place, mask)
        yield seg.get_segment_description(number).SegmentLabel, mask


def _read_nifti(file: Path, scan: Scan) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    image = nibabel.load(file)
    assert nibabel.aff2axcodes(image.affine) == ("R", "A", "S")
    place = np.linalg.inv(image.affine) @ LPS_TO_RAS @ scan.affine
    indices = np.indices(scan.organs.shape).reshape(3, -1)
    x, y, z = np.rint(place[:3, :3] @ indices + place[:3, 3:]).astype(int)
    values = np.asarray(image.dataobj)[x, y, z].reshape(scan.organs.shape)
    for value in np.unique(values[values > 0]):
        yield str(value), values == value


def _read_rtstruct(file: Path, scan: Scan) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    dataset = pydicom.dcmread(file)
    names = {roi.ROINumber: str(roi.ROIName) for roi in dataset.StructureSetROISequence}
    inverse = np.linalg.inv(scan.affine)
    for roi in dataset.ROIContourSequence:
        mask = np.zeros(scan.organs.shape, bool)
        for contour in roi.ContourSequence:
            points = np.reshape(np.asarray(contour.ContourData, float), (-1, 3))
            indices = points @ inverse[:3, :3].T + inverse[:3, 3]
            k = round(float(indices[0, 2]))
            assert np.abs(indices[:, 2] - k).max() < 1e-4
            mask[:, :, k] ^= _filled(indices[:, :2], mask.shape[:2])
        yield names[roi.ReferencedROINumber], mask


def _filled(contour: NDArray[np.float64], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    centres = np.indices(shape[:2]).reshape(2, -1).T
    closed = np.concatenate([contour, contour[:1]])
    return Polygon(closed, closed=True).contains_points(centres).reshape(shape[:2])


@given(arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 12))))
@hypothesis_settings(max_examples=60, deadline=None)
def test_tracing_and_even_odd_filling_are_inverse(mask: NDArray[np.bool_]) -> None:
    """Any mask: holes, islands in holes, parts that touch at a corner, parts at the edge."""
    filled = np.zeros_like(mask)
    for contour in trace(mask):
        filled ^= _filled(contour, mask.shape)
    assert np.array_equal(filled, mask)


@each_site
def test_a_hospital_reads_what_was_rendered(federation: Path, site: SitePlan) -> None:
    """The whole way through the client's own reading: values, place, and label map of the experiment's classes."""
    classes = (*ORGANS, *LESIONS)
    experiment = Experiment.model_validate(
        {"name": "x", "rounds": 1, "task": {"classes": classes}, "data": {"patch": [32, 32, 16]}}
    )
    found = find_cases(load_site(federation / site.name / "site.toml"), experiment)
    assert not found.skipped
    (case,) = found.cases
    volume, label = case.load()
    _, _, scan = _patient(federation, site)
    wanted = np.zeros(scan.organs.shape, np.uint8)
    for structure in site.structures:
        wanted[scan.mask(structure)] = classes.index(CLASS_OF[structure]) + 1
    assert np.allclose(volume.affine, LPS_TO_RAS @ scan.affine, atol=1e-4)
    assert np.allclose(volume.voxels[0], _shown(scan, site))
    assert np.array_equal(label, wanted)


def test_nothing_is_unlabelled_by_mistake(federation: Path) -> None:
    """Each site's label map names exactly the classes of the plan, and the record holds the settings."""
    for site in PLANS:
        assert load_site(federation / site.name / "site.toml").labels == site.label_map()
        assert load_site(federation / site.name / "site.toml").policy.least_patients == 1
    assert json.loads((federation / "phantom.json").read_text())["seed"] == SETTINGS.seed


def test_patients_are_told_apart() -> None:
    patients: list[PatientPlan] = [patient for site in PLANS for patient in site.patients]
    assert len({patient.id for patient in patients}) == len(patients)
