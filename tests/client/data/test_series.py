"""A series becomes a volume whose voxels and places agree with an independent reader, or is refused by name."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.pixels import get_decoder
from pydicom.sequence import Sequence as Items
from pydicom.uid import EnhancedMRImageStorage, RLELossless

from fedmed_client.data.headers import Header, read_header
from fedmed_client.data.index import Series
from fedmed_client.data.scan import scan
from fedmed_client.data.series import load_series
from fedmed_common.errors import DataError, DecoderMissing, GeometryError, UnreadableFile

PIXELS = np.arange(24, dtype=np.uint16).reshape(4, 6)
WriteSlice = Callable[..., Path]
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def _series(files: Sequence[Path]) -> Series:
    return Series(
        uid="2.25.2",
        patient="p1|",
        study_uid="2.25.1",
        frame_of_reference="2.25.3",
        modality="MR",
        description="",
        files=tuple(files),
        instances=tuple(str(number) for number in range(len(files))),
    )


def _places(step: Sequence[float], depths: Sequence[float]) -> list[list[float]]:
    return [[float(depth * component) for component in step] for depth in depths]


@pytest.fixture
def write_stack(tmp_path: Path, write_slice: WriteSlice) -> Callable[..., Series]:
    def write(positions: Sequence[Sequence[float]], **tags: Any) -> Series:
        files = [
            write_slice(tmp_path / f"{k}.dcm", PIXELS + k, ImagePositionPatient=list(position), **tags)
            for k, position in enumerate(positions)
        ]
        return _series(files)

    return write


def _reference(files: Sequence[Path]) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Voxels (X, Y, Z) and RAS affine as SimpleITK reads the files, which it sorts by its own geometry."""
    sitk = pytest.importorskip("SimpleITK")

    (uid,) = sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(files[0].parent))
    names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(files[0].parent), uid)
    image = sitk.ReadImage(names)
    affine = np.eye(4)
    direction = np.array(image.GetDirection()).reshape(3, 3)
    affine[:3, :3] = direction * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return sitk.GetArrayFromImage(image).transpose(2, 1, 0), LPS_TO_RAS @ affine


def _dicom_folders(fedmed_data: Path) -> list[Path]:
    dicom = fedmed_data / "dicom"
    return [*sorted(dicom.glob("rtstruct/STS_*/*/")), dicom / "series_ct_jpeg2000"]


def test_voxels_and_affine_agree_with_simpleitk(fedmed_data: Path) -> None:
    folders = _dicom_folders(fedmed_data)
    assert len(folders) == 10
    for folder in folders:
        headers = {path: read_header(path) for path in folder.glob("*.dcm")}
        images = [
            path for path, found in headers.items() if not isinstance(found, Header) or found.kind == "image"
        ]
        volume = load_series(_series(sorted(images)))
        voxels, affine = _reference(images)
        np.testing.assert_allclose(volume.affine, affine, atol=2e-3)
        assert volume.voxels.dtype == np.float32
        np.testing.assert_allclose(volume.voxels[0], voxels, rtol=1e-6, atol=1e-3)


def test_files_without_patient_are_decoded_or_refused_too(fedmed_data: Path) -> None:
    read = 0
    for part in ("odd", "compressed", "multiframe", "phi"):
        for path in sorted(path for path in (fedmed_data / "dicom" / part).rglob("*") if path.is_file()):
            try:
                assert np.isfinite(load_series(_series([path])).voxels).all()
                read += 1
            except DataError as error:
                assert str(error).strip()
    assert read > 100


@pytest.mark.parametrize(
    "variant", ["RLE", "bigendian", "expb", "implicit", "jp2klossless", "jpeg_ls_lossless", "padded"]
)
def test_lossless_transfer_syntaxes_hold_the_same_volume(fedmed_data: Path, variant: str) -> None:
    folder = fedmed_data / "dicom" / "odd" / "pydicom_test_files"
    plain = load_series(_series([folder / "MR_small.dcm"]))
    other = load_series(_series([folder / f"MR_small_{variant}.dcm"]))
    assert np.array_equal(plain.voxels, other.voxels)
    assert np.array_equal(plain.affine, other.affine)


def test_axes_order_and_spacing(write_stack: Callable[..., Series]) -> None:
    series = write_stack(_places((0, 0, 4.0), [2, 0, 1]))
    volume = load_series(series)
    assert volume.shape == (6, 4, 3)
    assert volume.spacing_mm == (3.0, 2.0, 4.0)
    assert volume.voxels[0, 5, 3].tolist() == [23 + 1, 23 + 2, 23 + 0]
    assert np.array_equal(volume.affine, np.diag([-3.0, -2.0, 4.0, 1.0]))


def test_descending_normal_keeps_a_right_handed_affine(write_stack: Callable[..., Series]) -> None:
    volume = load_series(
        write_stack(_places((0, 5.0, 0), [0, 1, 2]), ImageOrientationPatient=[1, 0, 0, 0, 0, -1])
    )
    assert np.linalg.det(volume.affine) > 0
    assert volume.voxels[0, 0, 0].tolist() == [0, 1, 2]


def test_gantry_tilt_is_an_exact_shear(write_stack: Callable[..., Series]) -> None:
    volume = load_series(write_stack(_places((0, 1.0, 4.0), range(4))))
    place = volume.affine @ [0, 0, 3, 1]
    np.testing.assert_allclose(place[:3], [0, -3.0, 12.0])


@pytest.mark.parametrize(
    ("positions", "message"),
    [
        (_places((0, 0, 4.0), [0, 1, 2, 4, 5]), r"gap of 8\.000 mm.*2\.dcm.*3\.dcm.*slice is missing"),
        (_places((0, 0, 4.0), [0, 1, 2, 3.3, 4.3]), "unevenly spaced"),
        (_places((0, 0, 4.0), [0, 1, 2, 2.5, 3, 3.5]), "gap|unevenly"),
        ([[0, 0, 0], [0, 0, 4], [0, 3, 8], [0, 0, 12]], "shifted"),
        (
            [[0, 0, 0], [0, 0, 4], [0, 0, 4], [0, 0, 8]],
            r"1\.dcm and 2\.dcm are different images in one place",
        ),
        ([[0, 0, 0], [0, 0, 4], [9, 0, 4], [0, 0, 8]], "side by side"),
        ([[0, 0, 0], [0, 0, float("nan")]], "finite"),
    ],
)
def test_what_is_no_even_stack_is_refused(
    write_stack: Callable[..., Series], positions: list[list[float]], message: str
) -> None:
    with pytest.raises(GeometryError, match=message) as caught:
        load_series(write_stack(positions))
    assert "2.25.2" in str(caught.value)


def test_rounded_positions_are_even_enough(write_stack: Callable[..., Series]) -> None:
    volume = load_series(write_stack([[0, 0, round(1.25 * k, 1)] for k in range(9)]))
    assert volume.spacing_mm[2] == pytest.approx(1.25)


def test_a_repeated_slice_is_dropped(tmp_path: Path, write_slice: WriteSlice) -> None:
    files = [
        write_slice(tmp_path / f"{k}", PIXELS + k // 2, ImagePositionPatient=[0, 0, 4.0 * (k // 2)])
        for k in range(6)
    ]
    assert load_series(_series(files)).shape == (6, 4, 3)


def test_a_conflict_names_what_sets_the_images_apart(tmp_path: Path, write_slice: WriteSlice) -> None:
    files = [write_slice(tmp_path / f"{k}", PIXELS + k, EchoTime=10.0 * k) for k in (1, 2)]
    with pytest.raises(GeometryError, match="apart in EchoTime"):
        load_series(_series(files))


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        ({"ImageOrientationPatient": [0, 1, 0, 0, 0, -1]}, "not parallel"),
        ({"PixelSpacing": [2.5, 3.0]}, "pixel spacing"),
        ({"PixelSpacing": None}, "incomplete"),
        ({"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}, "perpendicular"),
        ({"ImagePositionPatient": None}, "no position"),
        ({"PixelSpacing": [0.0, 3.0]}, "positive"),
    ],
)
def test_slices_that_do_not_fit_together(
    tmp_path: Path, write_slice: WriteSlice, tags: dict[str, Any], message: str
) -> None:
    files = [
        write_slice(tmp_path / "0", PIXELS),
        write_slice(tmp_path / "1", PIXELS, **{"ImagePositionPatient": [0, 0, 4], **tags}),
    ]
    with pytest.raises(GeometryError, match=message):
        load_series(_series(files))


def test_different_matrices_are_refused(tmp_path: Path, write_slice: WriteSlice) -> None:
    files = [
        write_slice(tmp_path / "0", PIXELS),
        write_slice(tmp_path / "1", PIXELS[:3], ImagePositionPatient=[0, 0, 4]),
    ]
    with pytest.raises(GeometryError, match="matrix"):
        load_series(_series(files))


def test_each_slice_has_its_own_rescale(tmp_path: Path, write_slice: WriteSlice) -> None:
    rescales = [(1, -1024), (2, 0), (0.5, 10)]
    files = [
        write_slice(
            tmp_path / f"{k}",
            PIXELS,
            ImagePositionPatient=[0, 0, k],
            RescaleSlope=slope,
            RescaleIntercept=intercept,
        )
        for k, (slope, intercept) in enumerate(rescales)
    ]
    volume = load_series(_series(files))
    assert volume.voxels[0, 5, 3].tolist() == [slope * 23 + intercept for slope, intercept in rescales]


@pytest.mark.parametrize(("modality", "expected"), [("MR", 4095 - 23), ("CR", 4095 - 23), ("CT", 23)])
def test_monochrome1(tmp_path: Path, write_slice: WriteSlice, modality: str, expected: int) -> None:
    path = write_slice(
        tmp_path / "0",
        PIXELS,
        Modality=modality,
        PhotometricInterpretation="MONOCHROME1",
        BitsStored=12,
        HighBit=11,
    )
    assert load_series(_series([path])).voxels[0, 5, 3, 0] == expected


def test_signed_monochrome1_before_rescale(tmp_path: Path, write_slice: WriteSlice) -> None:
    path = write_slice(
        tmp_path / "0",
        (PIXELS - 20).astype(np.int16),
        PhotometricInterpretation="MONOCHROME1",
        RescaleSlope=2,
        RescaleIntercept=7,
    )
    assert load_series(_series([path])).voxels[0, 5, 3, 0] == 2 * (-1 - 3) + 7


def test_bits_outside_the_stored_ones_are_ignored(tmp_path: Path, write_slice: WriteSlice) -> None:
    stored = ((PIXELS.astype(np.int16) - 20) & 0x0FFF) | 0x5000
    path = write_slice(tmp_path / "0", stored.astype(np.int16), BitsStored=12, HighBit=11)
    assert np.array_equal(load_series(_series([path])).voxels[0, :, :, 0].T, PIXELS.astype(int) - 20)


@pytest.mark.parametrize("limit", [{}, {"PixelPaddingRangeLimit": 2}])
def test_padding_takes_the_smallest_other_value(
    tmp_path: Path, write_slice: WriteSlice, limit: dict[str, int]
) -> None:
    files = [
        write_slice(
            tmp_path / f"{k}", PIXELS + k, ImagePositionPatient=[0, 0, k], PixelPaddingValue=0, **limit
        )
        for k in range(2)
    ]
    smallest = 3 if limit else 1
    assert load_series(_series(files)).voxels[0, :3, 0].ravel().tolist() == [
        max(smallest, v) for v in (0, 1, 1, 2, 2, 3)
    ]


def test_a_picture_without_geometry(tmp_path: Path, write_slice: WriteSlice) -> None:
    flat = {"ImagePositionPatient": None, "ImageOrientationPatient": None}
    path = write_slice(tmp_path / "0", PIXELS, PixelSpacing=None, ImagerPixelSpacing=[0.2, 0.1], **flat)
    volume = load_series(_series([path]))
    assert np.array_equal(volume.voxels[0, :, :, 0], PIXELS)
    assert volume.spacing_mm == (0.2, 0.1, 1.0)
    path = write_slice(tmp_path / "1", PIXELS, PixelSpacing=None, **flat)
    assert np.array_equal(load_series(_series([path])).affine, np.eye(4))


def test_colour_has_three_channels(fedmed_data: Path) -> None:
    folder = fedmed_data / "dicom" / "odd" / "pydicom_test_files"
    for name in ("examples_rgb_color", "SC_ybr_full_422_uncompressed", "examples_palette", "examples_jpeg2k"):
        volume = load_series(_series([folder / f"{name}.dcm"]))
        assert volume.voxels.shape[0] == 3
        assert np.ptp(volume.voxels) > 0


def _group(**elements: Any) -> Items:
    item = Dataset()
    for keyword, value in elements.items():
        setattr(item, keyword, value)
    return Items([item])


@pytest.fixture
def write_multiframe(tmp_path: Path, write_slice: WriteSlice) -> Callable[..., Series]:
    """Enhanced MR, one frame a depth, each frame's pixels 100 x its number, intercept 7 x its number."""

    def write(depths: Sequence[float], **frame_content: Sequence[Any]) -> Series:
        shared, frames = Dataset(), []
        shared.PlaneOrientationSequence = _group(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])
        shared.PixelMeasuresSequence = _group(PixelSpacing=[2, 3], SliceThickness=1)
        for k, depth in enumerate(depths):
            frame = Dataset()
            frame.PlanePositionSequence = _group(ImagePositionPatient=[0, 0, depth])
            frame.PixelValueTransformationSequence = _group(RescaleSlope=1, RescaleIntercept=7 * k)
            frame.FrameContentSequence = _group(
                **{keyword: values[k] for keyword, values in frame_content.items()}
            )
            frames.append(frame)
        stored = np.concatenate([np.full_like(PIXELS, 100 * k) for k in range(len(depths))])
        path = write_slice(
            tmp_path / "enhanced.dcm",
            stored,
            SOPClassUID=EnhancedMRImageStorage,
            NumberOfFrames=len(depths),
            Rows=4,
            ImagePositionPatient=None,
            ImageOrientationPatient=None,
            PixelSpacing=None,
            SharedFunctionalGroupsSequence=Items([shared]),
            PerFrameFunctionalGroupsSequence=Items(frames),
        )
        return _series([path])

    return write


def test_frames_of_a_multiframe_are_sorted_by_position(write_multiframe: Callable[..., Series]) -> None:
    volume = load_series(write_multiframe([8, 0, 4]))
    assert volume.voxels[0, 0, 0].tolist() == [107, 214, 0]
    assert np.array_equal(volume.affine, np.diag([-3.0, -2.0, 4.0, 1.0]))


def test_time_points_in_a_multiframe_are_refused_by_name(write_multiframe: Callable[..., Series]) -> None:
    with pytest.raises(GeometryError, match="TemporalPositionIndex"):
        load_series(write_multiframe([0, 4, 0, 4], TemporalPositionIndex=[1, 1, 2, 2]))


def test_multiframe_agrees_with_its_single_frames(fedmed_data: Path) -> None:
    folder = fedmed_data / "dicom" / "seg" / "labelmap_crop"
    single = load_series(_series(sorted(folder.glob("img_*.dcm"))))
    multi = load_series(_series([folder / "multiframe.dcm"]))
    assert np.array_equal(single.voxels, multi.voxels)
    np.testing.assert_allclose(single.affine, multi.affine, atol=1e-6)


def test_a_film_is_not_a_volume(fedmed_data: Path) -> None:
    path = fedmed_data / "dicom" / "odd" / "pydicom_test_files" / "examples_ybr_color.dcm"
    with pytest.raises(GeometryError, match="film of 30 frames"):
        load_series(_series([path]))


def test_a_missing_decoder_is_named_with_the_fix(fedmed_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = fedmed_data / "dicom" / "odd" / "pydicom_test_files" / "MR_small_RLE.dcm"
    monkeypatch.setattr(get_decoder(RLELossless), "_available", {})
    with pytest.raises(DecoderMissing, match=r"RLE Lossless[^$]*pip install 'fedmed\[decoders\]'"):
        load_series(_series([path]))


def test_truncated_pixels_are_refused_with_the_path(tmp_path: Path, write_slice: WriteSlice) -> None:
    path = write_slice(tmp_path / "cut.dcm", PIXELS)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(UnreadableFile, match=r"cut\.dcm"):
        load_series(_series([path]))
    with pytest.raises(UnreadableFile, match=r"absent\.dcm"):
        load_series(_series([tmp_path / "absent.dcm"]))


def test_mutated_slices_load_or_raise_a_data_error(tmp_path: Path, write_slice: WriteSlice) -> None:
    whole = write_slice(
        tmp_path / "slice.dcm", PIXELS, RescaleSlope=1, RescaleIntercept=0, PixelPaddingValue=3
    ).read_bytes()
    draw = random.Random(21)  # noqa: S311
    (tmp_path / "slice.dcm").unlink()
    for _ in range(300):
        mutated = bytearray(whole)
        for _ in range(draw.randint(1, 8)):
            mutated[draw.randrange(300, len(whole))] = draw.choice((0, 0xFF, draw.randrange(256)))
        (tmp_path / "slice.dcm").write_bytes(mutated)
        for series in scan(tmp_path).series:
            try:
                load_series(series)
            except DataError as error:
                assert str(error).strip()
