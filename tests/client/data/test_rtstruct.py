"""RTSTRUCT to masks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, RTStructureSetStorage, generate_uid
from skimage.measure import find_contours

from fedmed_client.data.index import Series
from fedmed_client.data.nifti import read_nifti_label
from fedmed_client.data.rtstruct import fill, plane_points, read_rtstruct, region_names
from fedmed_client.data.series import load_series
from fedmed_client.data.volume import Volume
from fedmed_common.errors import GeometryError, LabelError, UnreadableFile

Points = np.ndarray[Any, np.dtype[np.float64]]
SHAPE = (20, 16, 4)
SQUARE = np.array([[2.5, 2.5], [9.5, 2.5], [9.5, 7.5], [2.5, 7.5]])
STS = ["008", "018", "024", "035", "042"]


def series_of(folder: Path) -> Series:
    files = tuple(sorted(path for path in folder.glob("*.dcm") if not path.name.startswith("RS")))
    return Series(
        uid="1", patient="p|", study_uid="1", frame_of_reference="1", modality="MR", description="",
        files=files, instances=tuple(str(k) for k in range(len(files))),
    )  # fmt: skip


def oblique() -> Volume:
    x, y = np.array([0.96, 0.28, 0.0]), np.array([-0.168, 0.576, 0.8])
    affine = np.eye(4)
    affine[:3, :3] = np.stack([0.7 * x, 0.9 * y, 3.0 * np.cross(x, y)], axis=1)
    affine[:3, 3] = 11.0, -40.0, 7.0
    return Volume(voxels=np.zeros((1, *SHAPE), np.float32), affine=affine)


def lps(volume: Volume, points: Points, k: float) -> Points:
    indices = np.column_stack([points, np.full(len(points), k), np.ones(len(points))])
    return (indices @ volume.affine.T)[:, :3] * [-1, -1, 1]


def write(path: Path, regions: Sequence[tuple[str, Sequence[tuple[str, Points]]]]) -> Path:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = RTStructureSetStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = generate_uid(
        entropy_srcs=[path.name]
    )
    dataset.Modality = "RTSTRUCT"
    dataset.StructureSetROISequence, dataset.ROIContourSequence = [], []
    for number, (name, contours) in enumerate(regions, start=1):
        roi, drawn = Dataset(), Dataset()
        roi.ROINumber = drawn.ReferencedROINumber = number
        roi.ROIName = name
        drawn.ContourSequence = []
        for kind, points in contours:
            contour = Dataset()
            contour.ContourGeometricType = kind
            contour.NumberOfContourPoints = len(points)
            contour.ContourData = [f"{value:.6f}" for value in points.ravel()]
            drawn.ContourSequence.append(contour)
        dataset.StructureSetROISequence.append(roi)
        dataset.ROIContourSequence.insert(0, drawn)
    dataset.save_as(path, enforce_file_format=True)
    return path


def closed(volume: Volume, points: Points, k: float) -> tuple[str, Points]:
    return "CLOSED_PLANAR", lps(volume, points, k)


@pytest.mark.parametrize(
    "folder", [*(f"STS_{n}/MR_T1" for n in STS), *(f"STS_025/{m}" for m in ("MR_T1", "CT", "PET"))]
)
def test_the_expected_mask_of_every_real_series(fedmed_data: Path, folder: str) -> None:
    place = fedmed_data / "dicom" / "rtstruct" / folder
    volume = load_series(series_of(place))
    expected = read_nifti_label(place / "expected_mask.nii.gz", volume) > 0
    (mask,) = read_rtstruct(place / "RS.dcm", volume)
    assert expected.any()
    np.testing.assert_array_equal(mask, expected)


def test_two_regions_one_inside_the_other(fedmed_data: Path) -> None:
    place = fedmed_data / "dicom" / "rtstruct" / "STS_001_as_archived" / "MR_T2"
    assert region_names(place / "RS.dcm") == (("GTV_Mass",), ("GTV_Edema",))
    mass, oedema = read_rtstruct(place / "RS.dcm", load_series(series_of(place)))
    assert mass.sum() == 256_115
    # The README's count comes from each slice's own position; one voxel centre lies on an edge there.
    assert abs(int(oedema.sum()) - 406_547) <= 1
    assert not (mass & ~oedema).any()


@pytest.mark.parametrize("name", ["RS_invalid_reference.dcm", "RS_non_existent_reference.dcm"])
def test_contours_of_slices_that_are_absent_are_refused(fedmed_data: Path, name: str) -> None:
    place = fedmed_data / "dicom" / "rtstruct" / "two_slice_ct"
    volume = load_series(series_of(place))
    with pytest.raises(GeometryError, match="lies on slice 2"):
        read_rtstruct(place / name, volume)
    (mask,) = read_rtstruct(place / "RS.dcm", volume)
    assert mask.any(axis=(0, 1)).tolist() == [True, False]


@given(hnp.arrays(bool, (7, 9)))
def test_filling_the_outline_gives_the_mask(mask: np.ndarray[Any, np.dtype[np.bool_]]) -> None:
    outlines = [line[:-1] - 1 for line in find_contours(np.pad(mask, 1).astype(float), 0.5)]
    filled = fill(outlines, [1] * len(outlines), (7, 9, 3))
    np.testing.assert_array_equal(filled[:, :, 1], mask)
    assert not filled[:, :, [0, 2]].any()


def inside_by_definition(polygon: Points, x: int, y: int) -> bool:
    crossings = 0
    for (x0, y0), (x1, y1) in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
        if (y0 <= y) != (y1 <= y) and x0 + (y - y0) * (x1 - x0) / (y1 - y0) > x:
            crossings += 1
    return crossings % 2 == 1


@given(st.lists(st.tuples(st.floats(-3, 12), st.floats(-3, 12)), min_size=3, max_size=9))
def test_even_odd_by_definition(corners: list[tuple[float, float]]) -> None:
    off_the_grid = np.sqrt(np.array([2, 3])) / 500
    polygon = np.round(np.array(corners), 2) + off_the_grid
    expected = [[inside_by_definition(polygon, x, y) for y in range(8)] for x in range(9)]
    np.testing.assert_array_equal(fill([polygon], [0], (9, 8, 1))[:, :, 0], expected)


@settings(max_examples=30)
@given(st.lists(st.integers(0, 10), min_size=2, max_size=2, unique=True), st.integers(1, 9))
def test_polygons_that_share_an_edge_tile_without_gap_or_overlap(ends: list[int], middle: int) -> None:
    cut = np.array([[ends[0], 0.0], [middle, 5.0], [ends[1], 10.0]])
    left = np.vstack([[[0.0, 0.0]], cut, [[0.0, 10.0]]])
    right = np.vstack([cut, [[10.0, 10.0], [10.0, 0.0]]])
    parts = [fill([part], [0], (11, 11, 1)).astype(int) for part in (left, right)]
    square = np.array([[0.0, 0.0], [10.0, 0.0], [10.0, 10.0], [0.0, 10.0]])
    np.testing.assert_array_equal(sum(parts), fill([square], [0], (11, 11, 1)))


def test_holes_islands_and_other_slices_in_an_oblique_volume(tmp_path: Path) -> None:
    volume = oblique()
    hole, island = (SQUARE - 6) * 0.6 + 6, (SQUARE - 6) * 0.2 + 6
    rings = [closed(volume, ring, 1) for ring in (SQUARE, hole, island)]
    path = write(tmp_path / "a.dcm", [("Ring", [*rings, closed(volume, SQUARE, 3)])])
    (mask,) = read_rtstruct(path, volume)
    solid, cut, core = (fill([ring], [1], SHAPE)[:, :, 1] for ring in (SQUARE, hole, island))
    np.testing.assert_array_equal(mask[:, :, 1], (solid & ~cut) | core)
    np.testing.assert_array_equal(mask[:, :, 3], solid)
    assert solid.sum() == 7 * 5 and core.any() and not mask[:, :, [0, 2]].any()


def test_what_encloses_nothing_is_no_region(tmp_path: Path) -> None:
    volume = oblique()
    point = ("POINT", lps(volume, SQUARE[:1], 1))
    line = ("OPEN_PLANAR", lps(volume, SQUARE, 1))
    short = ("CLOSED_PLANAR", lps(volume, SQUARE[:2], 1))
    path = write(
        tmp_path / "a.dcm",
        [("Isocentre", [point]), ("Liver", [line, closed(volume, SQUARE, 2), short]), ("Empty", [])],
    )
    assert region_names(path) == (("Liver",),)
    (mask,) = read_rtstruct(path, volume)
    assert mask.sum() == 35
    assert len(plane_points(path)) == 1
    with pytest.raises(LabelError, match="POINT"):
        region_names(write(tmp_path / "b.dcm", [("Isocentre", [point])]))


def test_regions_keep_their_order_and_unwanted_ones_stay_empty(tmp_path: Path) -> None:
    volume = oblique()
    path = write(tmp_path / "a.dcm", [("A", [closed(volume, SQUARE, 0)]), ("B", [closed(volume, SQUARE, 9)])])
    assert region_names(path) == (("A",), ("B",))
    first, second = read_rtstruct(path, volume, wanted=[0])
    assert first.sum() == 35 and second.shape == SHAPE and not second.any()
    with pytest.raises(GeometryError, match="slice 9"):
        read_rtstruct(path, volume)


def test_contours_between_or_across_slices_are_refused(tmp_path: Path) -> None:
    volume = oblique()
    with pytest.raises(GeometryError, match="0\\.40 slices"):
        read_rtstruct(write(tmp_path / "a.dcm", [("A", [closed(volume, SQUARE, 1.4)])]), volume)
    tilted = lps(volume, SQUARE, 1)
    tilted[:2] += [0.0, 0.0, 4.0]
    with pytest.raises(GeometryError, match="parallel"):
        read_rtstruct(write(tmp_path / "b.dcm", [("A", [("CLOSED_PLANAR", tilted)])]), volume)


def test_contours_beside_the_image_are_cut_off(tmp_path: Path) -> None:
    volume = oblique()
    wide = np.array([[-50.0, -50.0], [50.0, -50.0], [50.0, 3.5], [-50.0, 3.5]])
    (mask,) = read_rtstruct(write(tmp_path / "a.dcm", [("A", [closed(volume, wide, 0)])]), volume)
    assert mask[:, :4, 0].all() and mask.sum() == SHAPE[0] * 4


def test_broken_files_are_refused(tmp_path: Path, fedmed_data: Path) -> None:
    (tmp_path / "text.dcm").write_text("no DICOM at all")
    image = fedmed_data / "dicom" / "rtstruct" / "two_slice_ct" / "ct_1.dcm"
    for path in (tmp_path / "text.dcm", tmp_path / "absent.dcm", image):
        with pytest.raises(UnreadableFile, match=path.name):
            region_names(path)
    crooked = write(tmp_path / "a.dcm", [("A", [("CLOSED_PLANAR", np.arange(10.0))])])
    with pytest.raises(UnreadableFile, match="ContourData"):
        region_names(crooked)
