"""A label and the series it was drawn on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, RTStructureSetStorage

from fedmed_client.data.index import LabelObject, Series
from fedmed_client.data.match import match
from fedmed_client.data.scan import scan
from fedmed_common.errors import GeometryError, LabelError


def save(path: Path, dataset: Dataset, sop_class: str) -> Path:
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = sop_class
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = "1.2.3"
    dataset.save_as(path, enforce_file_format=True)
    return path


def write_series(folder: Path, name: str, heights_mm: list[float], *, patient: str = "p|") -> Series:
    """Slices of 10 x 8 pixels of 1 mm, from the origin."""
    files = []
    for k, height in enumerate(heights_mm):
        image = Dataset()
        image.Columns, image.Rows = 10, 8
        image.ImageOrientationPatient, image.PixelSpacing = [1, 0, 0, 0, 1, 0], [1, 1]
        image.ImagePositionPatient = [0, 0, height]
        files.append(save(folder / f"{name}{k}.dcm", image, CTImageStorage))
    return Series(
        uid=name, patient=patient, study_uid="1", frame_of_reference="frame", modality="CT", description=name,
        files=tuple(files), instances=tuple(f"{name}.{k}" for k in range(len(files))),
    )  # fmt: skip


@pytest.fixture
def label(tmp_path: Path) -> LabelObject:
    """A triangle on each of the heights 0, 3, 6 mm."""
    dataset = Dataset()
    dataset.Modality = "RTSTRUCT"
    roi, drawn = Dataset(), Dataset()
    roi.ROINumber = drawn.ReferencedROINumber = 1
    roi.ROIName = "Liver"
    drawn.ContourSequence = []
    for height in (0, 3, 6):
        contour = Dataset()
        contour.ContourGeometricType = "CLOSED_PLANAR"
        contour.ContourData = [1, 1, height, 5, 1, height, 1, 5, height]
        drawn.ContourSequence.append(contour)
    dataset.StructureSetROISequence, dataset.ROIContourSequence = [roi], [drawn]
    path = save(tmp_path / "rs.dcm", dataset, RTStructureSetStorage)
    return LabelObject(
        kind="rtstruct", path=path, patient="p|", frame_of_reference="frame",
        referenced_series=(), referenced_instances=(),
    )  # fmt: skip


def steps(start: float, step: float, count: int = 4) -> list[float]:
    return [float(value) for value in start + step * np.arange(count)]


def test_instances_speak_before_the_series_and_the_series_before_the_frame(
    tmp_path: Path, label: LabelObject
) -> None:
    a, b = (write_series(tmp_path, name, steps(0, 3)) for name in "ab")
    both = replace(label, referenced_series=("a",), referenced_instances=("b.1", "b.2", "a.0"))
    assert match(both, [a, b]) is b
    assert match(replace(both, referenced_instances=("gone",)), [a, b]) is a
    elsewhere = replace(b, frame_of_reference="other")
    assert match(replace(label, referenced_series=("gone",)), [elsewhere, a]) is a


def test_another_patient_never_matches(tmp_path: Path, label: LabelObject) -> None:
    other = write_series(tmp_path, "a", steps(0, 3), patient="q|")
    with pytest.raises(LabelError, match="not here"):
        match(replace(label, referenced_series=("a",), referenced_instances=("a.0",)), [other])


@pytest.mark.parametrize("others", [steps(1.5, 3), steps(0, 1, 10), steps(0, 1.5, 8), steps(300, 3)])
def test_of_several_series_the_one_whose_slices_carry_the_label(
    tmp_path: Path, label: LabelObject, others: list[float]
) -> None:
    right, wrong = write_series(tmp_path, "a", steps(-3, 3, 6)), write_series(tmp_path, "b", others)
    assert match(label, [wrong, right]) is right
    assert match(replace(label, referenced_series=("a", "b")), [right, wrong]) is right
    with pytest.raises(GeometryError, match="does not lie on the slices"):
        match(label, [wrong])


def test_equal_series_are_listed(tmp_path: Path, label: LabelObject) -> None:
    a, b = (write_series(tmp_path, name, steps(0, 3)) for name in "ab")
    with pytest.raises(LabelError, match=r"2 series equally well.*CT 'a' \(4 files.*CT 'b'") as caught:
        match(label, [a, b])
    assert "fix:" in str(caught.value)


def test_series_without_a_place_do_not_count(tmp_path: Path, label: LabelObject) -> None:
    right = write_series(tmp_path, "a", steps(0, 3))
    picture = replace(right, uid="b", files=(save(tmp_path / "b.dcm", Dataset(), CTImageStorage),))
    broken = replace(right, uid="c", files=(tmp_path / "absent.dcm",))
    assert match(label, [broken, picture, right]) is right


def test_without_a_frame_of_reference_nothing_is_guessed(tmp_path: Path, label: LabelObject) -> None:
    series = replace(write_series(tmp_path, "a", steps(0, 3)), frame_of_reference="")
    with pytest.raises(LabelError, match="not here"):
        match(replace(label, frame_of_reference=""), [series])


def test_real_labels_find_their_series(fedmed_data: Path) -> None:
    for part in ("rtstruct", "seg"):
        index = scan(fedmed_data / "dicom" / part, workers=1)
        for label in index.labels:
            if label.path.parent.name == "orphan":
                with pytest.raises(LabelError, match="not here"):
                    match(label, index.series)
                continue
            found = match(label, index.series)
            assert found.files[0].parent == label.path.parent
