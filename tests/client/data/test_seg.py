"""DICOM SEG to masks."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pydicom
import pytest
from highdicom.seg import SegmentationTypeValues as Kind
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.sr.codedict import codes
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, RLELossless, generate_uid

from fedmed_client.data.index import Series
from fedmed_client.data.seg import plane_points, read_seg, segment_names
from fedmed_client.data.series import load_series
from fedmed_client.data.volume import Volume
from fedmed_common.errors import GeometryError, LabelError, UnreadableFile

Mask = np.ndarray[Any, np.dtype[np.bool_]]
SHAPE = (6, 5, 4)
ENCODINGS = ["", "_deflate", "_expb", "_j2k", "_nonbyte_aligned", "_nonbyte_aligned_rle", "_rle"]
X, Y = np.array([0.96, 0.28, 0.0]), np.array([-0.168, 0.576, 0.8])
SPACING_MM = (0.7, 0.9, 3.0)
ORIGIN_LPS = np.array([-11.0, 40.0, 7.0])


def load(folder: Path, pattern: str) -> Volume:
    files = tuple(sorted(folder.glob(pattern)))
    series = Series(
        uid="1", patient="p|", study_uid="1", frame_of_reference="1", modality="CT", description="",
        files=files, instances=tuple(str(k) for k in range(len(files))),
    )  # fmt: skip
    return load_series(series)


def oblique() -> Volume:
    affine = np.eye(4)
    affine[:3, :3] = np.stack([X, Y, np.cross(X, Y)], axis=1) * SPACING_MM
    affine[:3, 3] = ORIGIN_LPS
    return Volume(voxels=np.zeros((1, *SHAPE), np.float32), affine=np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine)


def on_affine(affine: np.ndarray[Any, Any], shape: tuple[int, ...]) -> Volume:
    return Volume(voxels=np.zeros((1, *shape), np.float32), affine=affine)


def sources() -> list[Dataset]:
    study, series, frame = (generate_uid(entropy_srcs=[name]) for name in ("study", "series", "frame"))
    images = []
    for k in range(SHAPE[2]):
        image = Dataset()
        image.file_meta = FileMetaDataset()
        image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        image.SOPClassUID = CTImageStorage
        image.SOPInstanceUID = generate_uid(entropy_srcs=["image", str(k)])
        image.StudyInstanceUID, image.SeriesInstanceUID, image.FrameOfReferenceUID = study, series, frame
        image.PatientID = image.PatientName = "test"
        image.PatientBirthDate = image.PatientSex = image.StudyDate = image.StudyTime = ""
        image.AccessionNumber = image.ReferringPhysicianName = image.StudyID = ""
        image.Modality, image.Columns, image.Rows = "CT", SHAPE[0], SHAPE[1]
        image.ImageOrientationPatient = [*X, *Y]
        image.ImagePositionPatient = [float(v) for v in ORIGIN_LPS + k * SPACING_MM[2] * np.cross(X, Y)]
        image.PixelSpacing, image.SliceThickness = [SPACING_MM[1], SPACING_MM[0]], SPACING_MM[2]
        images.append(image)
    return images


def describe(number: int, label: str) -> highdicom.seg.SegmentDescription:
    return highdicom.seg.SegmentDescription(
        segment_number=number,
        segment_label=label,
        segmented_property_category=codes.SCT.Organ,
        segmented_property_type=codes.SCT.Liver if number == 1 else codes.SCT.Spleen,
        algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.MANUAL,
    )


def build(masks: list[Mask], kind: Kind, syntax: str = ExplicitVRLittleEndian) -> Any:
    """A SEG written by highdicom, which wants (slices, rows, columns, segments)."""
    stacked = np.stack(masks, axis=-1).transpose(2, 1, 0, 3)
    if kind is Kind.FRACTIONAL:
        stacked = stacked.astype(np.float32)
    elif kind is Kind.LABELMAP:
        stacked = (stacked * np.arange(1, len(masks) + 1)).max(axis=-1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return highdicom.seg.Segmentation(
            source_images=sources(),
            pixel_array=stacked.astype(np.uint8) if kind is not Kind.FRACTIONAL else stacked,
            segmentation_type=kind,
            segment_descriptions=[describe(k + 1, f"Segment {k + 1}") for k in range(len(masks))],
            series_instance_uid=generate_uid(entropy_srcs=["seg"]),
            series_number=2,
            sop_instance_uid=generate_uid(entropy_srcs=["seg", "1"]),
            instance_number=1,
            manufacturer="m",
            manufacturer_model_name="m",
            software_versions="1",
            device_serial_number="1",
            transfer_syntax_uid=syntax,
        )


def save(path: Path, dataset: Any) -> Path:
    dataset.save_as(path)
    return path


def ball() -> Mask:
    mask = np.zeros(SHAPE, bool)
    mask[1:5, 2:4, 1:3] = True
    return mask


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_the_liver_in_every_encoding(fedmed_data: Path, encoding: str) -> None:
    folder = fedmed_data / "dicom" / "seg" / "ct_3slice"
    path = folder / f"seg_liver{encoding}.dcm"
    assert segment_names(path) == (("Liver", "SRT:T-62000", "SCT:10200004"),)
    (liver,) = read_seg(path, load(folder, "ct_*.dcm"))
    assert liver.sum(axis=(0, 1)).tolist() == [36_233, 35_645, 35_220]


def test_five_shapes_that_overlap(fedmed_data: Path) -> None:
    folder = fedmed_data / "dicom" / "seg" / "ct_3slice"
    masks = read_seg(folder / "seg_partial_overlaps.dcm", load(folder, "ct_*.dcm"))
    assert [int(mask.sum()) for mask in masks] == [9602, 11888, 117 + 117 + 10509, 6693, 4713]
    names = [names[0] for names in segment_names(folder / "seg_partial_overlaps.dcm")]
    assert names == ["GREEN", "ORANGE", "PURPLE", "LIGHT_BLUE", "DARK_BLUE"]
    assert sum(mask.astype(int) for mask in masks).max() > 1


def test_a_fractional_breast_lies_on_tissue(fedmed_data: Path) -> None:
    folder = fedmed_data / "dicom" / "seg" / "breast_mr"
    volume = load(folder, "1-*.dcm")
    path = folder / "seg_breast_fractional.dcm"
    (breast,) = read_seg(path, volume)
    stored = pydicom.dcmread(path).pixel_array
    assert breast.sum() == (stored == 255).sum()
    assert volume.voxels[0][breast].mean() > 3 * volume.voxels[0][~breast].mean()


@pytest.mark.parametrize("name", ["seg_labelmap_noppv.dcm", "seg_labelmap_ppv5.dcm"])
@pytest.mark.parametrize("image", ["img_*.dcm", "multiframe.dcm"])
def test_a_label_map_with_and_without_padding(fedmed_data: Path, name: str, image: str) -> None:
    folder = fedmed_data / "dicom" / "seg" / "labelmap_crop"
    assert segment_names(folder / name) == (("Liver", "SCT:10200004"),)
    (liver,) = read_seg(folder / name, load(folder, image))
    assert liver.sum(axis=(0, 1)).tolist() == [315, 0, 315]


def test_a_segmentation_of_other_images_is_refused(fedmed_data: Path) -> None:
    folder = fedmed_data / "dicom" / "seg"
    with pytest.raises(GeometryError, match="outside the image"):
        read_seg(folder / "orphan" / "seg_pet_source_absent.dcm", load(folder / "ct_3slice", "ct_*.dcm"))


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    masks=st.lists(hnp.arrays(bool, SHAPE), min_size=1, max_size=2),
    kind=st.sampled_from([Kind.BINARY, Kind.FRACTIONAL, Kind.LABELMAP]),
)
def test_what_highdicom_writes_is_read_back(tmp_path: Path, masks: list[Mask], kind: Kind) -> None:
    if not masks[0].any() or not masks[-1].any():
        masks = [mask | ball() for mask in masks]
    read = read_seg(save(tmp_path / "a.dcm", build(masks, kind)), oblique())
    if kind is Kind.LABELMAP and len(masks) == 2:
        masks = [masks[0] & ~masks[1], masks[1]]
    np.testing.assert_array_equal(read, masks)


@pytest.mark.parametrize("kind", [Kind.FRACTIONAL, Kind.LABELMAP])
def test_compressed_frames_of_eight_bits(tmp_path: Path, kind: Kind) -> None:
    (mask,) = read_seg(save(tmp_path / "a.dcm", build([ball()], kind, RLELossless)), oblique())
    np.testing.assert_array_equal(mask, ball())


def test_the_order_of_frames_does_not_matter(tmp_path: Path) -> None:
    dataset = build([ball(), np.roll(ball(), 1, axis=2)], Kind.FRACTIONAL)
    before = read_seg(save(tmp_path / "a.dcm", dataset), oblique())
    order = np.random.default_rng(0).permutation(int(dataset.NumberOfFrames))
    groups = list(dataset.PerFrameFunctionalGroupsSequence)
    pixels = dataset.pixel_array[order].tobytes()
    dataset.PerFrameFunctionalGroupsSequence = [groups[k] for k in order]
    for group in dataset.PerFrameFunctionalGroupsSequence:
        del group.DerivationImageSequence
    dataset.PixelData = pixels
    np.testing.assert_array_equal(read_seg(save(tmp_path / "b.dcm", dataset), oblique()), before)


@given(axes=st.permutations(range(3)), flips=st.tuples(*[st.booleans()] * 3))
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_an_image_whose_axes_are_turned(tmp_path: Path, axes: list[int], flips: tuple[bool, ...]) -> None:
    turn = np.zeros((4, 4))
    turn[3, 3] = 1
    for target, (axis, flip) in enumerate(zip(axes, flips, strict=True)):
        turn[axis, target] = -1 if flip else 1
        turn[axis, 3] = SHAPE[axis] - 1 if flip else 0
    expected = ball().transpose(axes)
    expected = expected[tuple(slice(None, None, -1 if flip else 1) for flip in flips)]
    volume = on_affine(oblique().affine @ turn, expected.shape)
    (mask,) = read_seg(save(tmp_path / "a.dcm", build([ball()], Kind.BINARY)), volume)
    np.testing.assert_array_equal(mask, expected)


def test_a_finer_image_takes_the_nearest_voxel(tmp_path: Path) -> None:
    path = save(tmp_path / "a.dcm", build([ball()], Kind.BINARY))
    finer = np.eye(4)
    finer[:3, :3] /= 2
    finer[:3, 3] = -0.25
    (mask,) = read_seg(path, on_affine(oblique().affine @ finer, tuple(2 * n for n in SHAPE)))
    np.testing.assert_array_equal(mask, ball().repeat(2, 0).repeat(2, 1).repeat(2, 2))


def test_a_tilted_image_takes_the_nearest_voxel(tmp_path: Path) -> None:
    path = save(tmp_path / "a.dcm", build([ball()], Kind.BINARY))
    tilt = np.eye(4)
    tilt[:2, :2] = [[0.8, -0.6], [0.6, 0.8]]
    volume = on_affine(oblique().affine @ tilt, SHAPE)
    expected = np.zeros(SHAPE, bool)
    for index in np.ndindex(SHAPE):
        x, y, z = np.floor((tilt @ [*index, 1])[:3] + 0.5).astype(int)
        expected[index] = 0 <= x < SHAPE[0] and 0 <= y < SHAPE[1] and ball()[x, y, z]
    np.testing.assert_array_equal(read_seg(path, volume)[0], expected)


def test_part_of_the_image_and_none_of_it(tmp_path: Path) -> None:
    path = save(tmp_path / "a.dcm", build([ball()], Kind.BINARY))
    shifted = oblique().affine @ np.array([[1, 0, 0, 2], [0, 1, 0, -1], [0, 0, 1, 1], [0, 0, 0, 1.0]])
    (mask,) = read_seg(path, on_affine(shifted, SHAPE))
    assert mask.sum() == 3 * 2 * 2
    for far in (100.0, 100.5):
        away = np.eye(4)
        away[0, 3] = far
        with pytest.raises(GeometryError, match="image"):
            read_seg(path, on_affine(oblique().affine @ away, SHAPE))


def test_the_threshold_is_a_share_of_the_maximum(tmp_path: Path) -> None:
    dataset = build([ball()], Kind.FRACTIONAL)
    dataset.PixelData = (dataset.pixel_array // 255 * 100).astype(np.uint8).tobytes()
    path = save(tmp_path / "a.dcm", dataset)
    assert not read_seg(path, oblique())[0].any()
    assert read_seg(path, oblique(), threshold=0.39)[0].sum() == ball().sum()


def test_unwanted_segments_stay_empty(tmp_path: Path) -> None:
    path = save(tmp_path / "a.dcm", build([ball(), ball()], Kind.BINARY))
    assert segment_names(path)[1] == ("Segment 2", "SCT:78961009", "Spleen")
    first, second = read_seg(path, oblique(), wanted=[1])
    assert first.shape == SHAPE and not first.any()
    np.testing.assert_array_equal(second, ball())


def test_where_the_frames_lie(tmp_path: Path) -> None:
    planes = plane_points(save(tmp_path / "a.dcm", build([ball()], Kind.BINARY)))
    to_index = np.linalg.inv(oblique().affine)
    indices = [points @ to_index[:3, :3].T + to_index[:3, 3] for points in planes]
    indices.sort(key=lambda points: points[0, 2])
    np.testing.assert_allclose([points[:, 2] for points in indices], [[1.0] * 9, [2.0] * 9], atol=1e-4)
    np.testing.assert_allclose(indices[0].max(axis=0)[:2], [SHAPE[0] - 1, SHAPE[1] - 1], atol=1e-4)


def test_faulty_objects_are_refused(tmp_path: Path, fedmed_data: Path) -> None:
    (tmp_path / "text.dcm").write_text("no DICOM at all")
    image = fedmed_data / "dicom" / "seg" / "ct_3slice" / "ct_01.dcm"
    for path in (tmp_path / "text.dcm", tmp_path / "absent.dcm", image):
        with pytest.raises(UnreadableFile, match=path.name):
            segment_names(path)
    undescribed = build([ball(), ~ball()], Kind.LABELMAP)
    undescribed.SegmentSequence = [s for s in undescribed.SegmentSequence if s.SegmentNumber != 2]
    with pytest.raises(LabelError, match=r"\[2\]"):
        read_seg(save(tmp_path / "a.dcm", undescribed), oblique())
    cut = build([ball()], Kind.BINARY)
    cut.PixelData = cut.PixelData[:2]
    with pytest.raises(UnreadableFile, match="decoded"):
        read_seg(save(tmp_path / "b.dcm", cut), oblique())
    placeless = build([ball()], Kind.BINARY)
    del placeless.PerFrameFunctionalGroupsSequence[0].PlanePositionSequence
    with pytest.raises(GeometryError, match="frame 1 has no position"):
        read_seg(save(tmp_path / "c.dcm", placeless), oblique())
