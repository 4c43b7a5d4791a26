"""A scan finds series and labels in any mixture of files, accounts for each file, and survives all of them."""

from __future__ import annotations

import os
import random
import sqlite3
import subprocess
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmed_client.data import header_pool, headers
from fedmed_client.data.index_store import default_index_file
from fedmed_client.data.scan import Index, scan
from fedmed_client.data.series import load_series
from fedmed_client.data.text import normalise_patient, printable
from fedmed_common.errors import ConfigError, DataError

PIXELS = np.arange(24, dtype=np.uint16).reshape(4, 6)
WriteSlice = Callable[..., Path]


def _accounted(index: Index) -> Counter[Path]:
    in_series = [path for series in index.series for path in series.files]
    return Counter(
        [*in_series, *(label.path for label in index.labels), *(item.path for item in index.skipped)]
    )


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def volume_folder(tmp_path: Path, write_slice: WriteSlice) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    for k in range(5):
        write_slice(folder / f"{k}.dcm", PIXELS + k, ImagePositionPatient=[0.0, 0.0, 4.0 * k])
    return folder


@pytest.mark.parametrize("part", ["odd", "compressed", "multiframe", "phi"])
def test_each_real_file_is_read_or_refused_with_a_reason(fedmed_data: Path, part: str) -> None:
    folder = fedmed_data / "dicom" / part
    index = scan(folder)
    assert _accounted(index) == Counter(_files(folder))
    assert all(item.code and item.reason for item in index.skipped)
    for series in index.series:
        try:
            assert np.isfinite(load_series(series).voxels).all()
        except DataError as error:
            assert str(error).strip()


@pytest.mark.parametrize(
    ("file", "code", "reason"),
    [
        ("odd/pydicom_test_files/MR_truncated.dcm", "truncated", "50 bytes"),
        ("odd/pydicom_test_files/rtplan.dcm", "unsupported-object", "RT Plan Storage"),
        ("odd/pydicom_test_files/rtplan_truncated.dcm", "unsupported-object", "RT Plan Storage"),
        ("odd/pydicom_test_files/rtdose.dcm", "unsupported-object", "RT Dose Storage"),
        ("odd/pydicom_test_files/badVR.dcm", "unsupported-object", "RT Dose Storage"),
        ("odd/pydicom_test_files/test-SR.dcm", "unsupported-object", "Comprehensive SR Storage"),
        ("odd/pydicom_test_files/waveform_ecg.dcm", "unsupported-object", "12-lead ECG"),
        ("odd/pydicom_test_files/dicomdirtests/DICOMDIR", "unsupported-object", "Media Storage Directory"),
        ("odd/pydicom_test_files/no_meta.dcm", "unreadable-file", "does not begin like a DICOM file"),
        ("odd/pydicom_test_files/zipMR.gz", "not-dicom", "unpack"),
        ("odd/pydicom_test_files/SC_rgb_jpeg.dcm", "no-patient", "PatientID"),
        ("odd/GH177_D_CLUNIE_CT1_IVRLE_BigEndian_undefined_length.dcm", "unreadable-file", "OSError"),
        ("phi/pseudo_phi_no_pixels.dcm", "no-pixels", "Computed Radiography"),
        ("README.md", "not-dicom", "not a DICOM file"),
        ("rtstruct/STS_008/MR_T1/expected_mask.nii.gz", "not-dicom", "not a DICOM file"),
    ],
)
def test_reasons(fedmed_data: Path, file: str, code: str, reason: str) -> None:
    found = headers.read_header(fedmed_data / "dicom" / file)
    assert isinstance(found, headers.Refused)
    assert found.code == code
    assert reason in found.reason


def test_label_objects_name_what_they_were_drawn_on(fedmed_data: Path) -> None:
    liver = scan(fedmed_data / "dicom" / "seg" / "ct_3slice")
    assert {label.kind for label in liver.labels} == {"seg"}
    assert set(liver.labels[0].referenced_instances) == set(liver.series[0].instances)
    breast = scan(fedmed_data / "dicom" / "seg" / "breast_mr")
    referenced = set(breast.labels[0].referenced_instances)
    assert (len(referenced), len(referenced & set(breast.series[0].instances))) == (84, 42)
    sarcoma = scan(fedmed_data / "dicom" / "rtstruct" / "STS_008")
    (region,), (series,) = sarcoma.labels, sarcoma.series
    assert region.kind == "rtstruct"
    assert region.referenced_series == (series.uid,)
    assert (region.patient, region.frame_of_reference) == (series.patient, series.frame_of_reference)


def test_several_processes_find_what_one_finds(fedmed_data: Path) -> None:
    folder = fedmed_data / "dicom" / "rtstruct"
    assert scan(folder, workers=3) == scan(folder, workers=1)


def test_second_scan_opens_only_what_changed(volume_folder: Path, tmp_path: Path) -> None:
    index_file = tmp_path / "index.db"
    first = scan(volume_folder, index_file=index_file)
    assert len(first.series) == 1
    assert index_file.stat().st_mode & 0o077 == 0
    same_stamp, changed = volume_folder / "0.dcm", volume_folder / "1.dcm"
    status = same_stamp.stat()
    same_stamp.write_bytes(bytes(status.st_size))
    os.utime(same_stamp, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert scan(volume_folder, index_file=index_file) == first
    changed.write_bytes(b"")
    (volume_folder / "2.dcm").unlink()
    second = scan(volume_folder, index_file=index_file)
    assert [path.name for path in second.series[0].files] == ["0.dcm", "3.dcm", "4.dcm"]
    assert [item.reason for item in second.skipped] == ["empty file"]
    assert scan(volume_folder).skipped[0].path == same_stamp


def test_one_index_file_serves_several_folders(volume_folder: Path, tmp_path: Path) -> None:
    index_file, other = tmp_path / "index.db", tmp_path / "data2"
    other.mkdir()
    first = scan(volume_folder, index_file=index_file)
    assert scan(other, index_file=index_file) == Index(series=(), labels=(), skipped=())
    with sqlite3.connect(index_file) as connection:
        assert connection.execute("SELECT count(*) FROM files").fetchone() == (5,)
    connection.close()
    assert scan(volume_folder, index_file=index_file) == first


def test_a_killed_scan_continues(tmp_path: Path, write_slice: WriteSlice) -> None:
    folder, index_file = tmp_path / "data", tmp_path / "index.db"
    folder.mkdir()
    whole = write_slice(folder / "0.dcm", PIXELS).read_bytes()
    for k in range(800):
        (folder / f"{k}.dcm").write_bytes(whole)
    code = (
        "import sys; from pathlib import Path; from fedmed_client.data.scan import scan; "
        "scan(Path(sys.argv[1]), index_file=Path(sys.argv[2]), workers=1)"
    )
    running = subprocess.Popen([sys.executable, "-c", code, str(folder), str(index_file)])
    while running.poll() is None and _rows(index_file) == 0:
        time.sleep(0.01)
    running.kill()
    running.wait()
    assert _rows(index_file) >= 500
    assert scan(folder, index_file=index_file) == scan(folder)
    assert _rows(index_file) == 800


def _rows(index_file: Path) -> int:
    if not index_file.exists():
        return 0
    connection = sqlite3.connect(f"file:{index_file}?mode=ro", uri=True)
    try:
        return int(connection.execute("SELECT count(*) FROM files").fetchone()[0])
    except sqlite3.OperationalError:
        return 0
    finally:
        connection.close()


def test_workers_that_die_lose_only_the_file_in_hand(
    volume_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(header_pool, "_SECONDS_PER_LIST", 0.0)
    index = scan(volume_folder, workers=2)
    assert _accounted(index) == Counter(_files(volume_folder))
    assert {item.code for item in index.skipped} == {"reader-crashed"}


def test_a_scan_that_is_given_up_leaves_no_process(volume_folder: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from fedmed_client.data.header_pool import read_headers\n"
        "results = read_headers([Path(sys.argv[1])] * 1000, workers=2); next(results); results.close()\n"
        "try: os.waitpid(-1, os.WNOHANG)\n"
        "except ChildProcessError: print('none left')"
    )
    command = [sys.executable, "-W", "error", "-c", code, str(volume_folder / "0.dcm")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert (done.stdout, done.stderr) == ("none left\n", "")


def test_things_that_are_not_files(volume_folder: Path, tmp_path: Path) -> None:
    os.mkfifo(volume_folder / "pipe")
    (volume_folder / "loop").symlink_to(volume_folder)
    (volume_folder / "gone.dcm").symlink_to(tmp_path / "nowhere")
    (volume_folder / "linked.dcm").symlink_to(volume_folder / "0.dcm")
    (Path(os.fsdecode(os.fsencode(volume_folder) + b"/\xff\x1b[31m.dcm"))).write_bytes(b"no")
    index = scan(volume_folder, index_file=tmp_path / "index.db", workers=2)
    codes = {printable(item.path.name): item.code for item in index.skipped}
    assert codes == {
        "pipe": "not-a-file",
        "loop": "link-to-folder",
        "gone.dcm": "no-access",
        "linked.dcm": "duplicate-instance",
        "?\N{REPLACEMENT CHARACTER}[31m.dcm": "unreadable-file",
    }
    assert [len(series.files) for series in index.series] == [5]


def test_a_series_is_split_where_it_is_not_one_volume(volume_folder: Path, write_slice: WriteSlice) -> None:
    write_slice(volume_folder / "a_scout", PIXELS, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    write_slice(volume_folder / "b_turned", PIXELS, ImageOrientationPatient=[0.0, 1.0, 0.0, 0.0, 0.0, -1.0])
    write_slice(volume_folder / "c_size", PIXELS[:, :5])
    write_slice(volume_folder / "d_echo", PIXELS, EchoNumbers=2)
    write_slice(volume_folder / "e_flat", PIXELS, ImagePositionPatient=None)
    write_slice(volume_folder / "f_flat", PIXELS, ImagePositionPatient=None)
    write_slice(volume_folder / "g_patient", PIXELS, PatientID="P2")
    jitter = [1.0, 1e-6, 0.0, -1e-6, 1.0, 0.0]
    write_slice(
        volume_folder / "h", PIXELS, ImagePositionPatient=[0.0, 0.0, 20.0], ImageOrientationPatient=jitter
    )
    index = scan(volume_folder)
    assert sorted(len(series.files) for series in index.series) == [1, 1, 1, 1, 1, 1, 1, 6]
    assert {series.uid for series in index.series} == {"2.25.2"}
    assert not index.skipped


@pytest.mark.parametrize(
    ("tags", "code"),
    [
        ({"PatientID": " \t "}, "no-patient"),
        ({"PatientID": None}, "no-patient"),
        ({"SeriesInstanceUID": None}, "no-identifier"),
        ({"PixelData": None}, "no-pixels"),
    ],
)
def test_what_an_image_must_have(
    tmp_path: Path, write_slice: WriteSlice, tags: dict[str, Any], code: str
) -> None:
    write_slice(tmp_path / "slice.dcm", PIXELS, **tags)
    index = scan(tmp_path)
    assert [item.code for item in index.skipped] == [code]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("ab 12", "X"), ("ＡＢ  12 ", " x")),  # noqa: RUF001
        (("Straße", ""), ("STRASSE", "")),
        (("12\0", ""), ("12", "")),
        (("1\u200b2", ""), ("12", "")),
    ],
)
def test_spellings_of_one_patient(one: tuple[str, str], other: tuple[str, str]) -> None:
    assert normalise_patient(*one) == normalise_patient(*other)


@given(st.text(max_size=8), st.text(max_size=8), st.text(max_size=8), st.text(max_size=8))
def test_patients_never_merge_across_the_separator(a: str, b: str, c: str, d: str) -> None:
    same_parts = normalise_patient(a, "") == normalise_patient(c, "") and normalise_patient(
        b, ""
    ) == normalise_patient(d, "")
    assert (normalise_patient(a, b) == normalise_patient(c, d)) == same_parts


@given(st.text(max_size=20))
def test_normalising_twice_changes_nothing(text: str) -> None:
    once = normalise_patient(text, "").removesuffix("|").replace("\\|", "|").replace("\\\\", "\\")
    assert normalise_patient(once, "") == normalise_patient(text, "")


def test_mutated_files_never_stop_a_scan(fedmed_data: Path, tmp_path: Path) -> None:
    draw = random.Random(20)  # noqa: S311
    dicom = fedmed_data / "dicom"
    sources = [path for path in _files(dicom) if path.stat().st_size < 60_000 and path.suffix in ("", ".dcm")]
    for number in range(300):
        whole = bytearray(draw.choice(sources).read_bytes())
        header = min(len(whole), 3000)
        for _ in range(draw.randint(1, 20)):
            whole[draw.randrange(128, header)] = draw.choice((0, 0xFF, draw.randrange(256)))
        if draw.random() < 0.3:
            del whole[draw.randrange(len(whole)) :]
        (tmp_path / f"{number:03}.dcm").write_bytes(whole)
    assert _accounted(scan(tmp_path)) == Counter(_files(tmp_path))


def test_a_file_that_inflates_without_end_is_refused(
    fedmed_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = (fedmed_data / "dicom/odd/pydicom_test_files/image_dfl.dcm").read_bytes()
    start = 144 + int.from_bytes(whole[140:144], "little")
    deflate = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    (tmp_path / "bomb.dcm").write_bytes(whole[:start] + deflate.compress(bytes(2**24)) + deflate.flush())
    monkeypatch.setattr(headers, "_LARGEST_INFLATED", 2**20)
    assert "inflates" in scan(tmp_path).skipped[0].reason


def test_wrong_folder_and_wrong_index(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not a folder"):
        scan(tmp_path / "absent")
    (tmp_path / "notes.txt").write_text("not an index " * 50)
    with pytest.raises(ConfigError, match="cannot be used as index"):
        scan(tmp_path, index_file=tmp_path / "notes.txt")
    assert (tmp_path / "notes.txt").read_text().startswith("not an index")


def test_default_index_lies_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    one, other = default_index_file(tmp_path / "a"), default_index_file(tmp_path / "b")
    assert one != other
    assert one.parent == tmp_path / "fedmed" / "index"


@pytest.mark.parametrize(
    ("keyword", "content"),
    [
        ("PatientID", b"A\\B"),
        ("PatientID", b" 007 \0"),
        ("PatientID", "Jörg".encode("latin-1")),
        ("NumberOfFrames", b"1.0"),
        ("NumberOfFrames", b" 2"),
        ("NumberOfFrames", b"many"),
        ("ImageOrientationPatient", b"  "),
        ("ImageOrientationPatient", b"1\\0\\0\\0\\1\\0 "),
        ("ImageOrientationPatient", b"1\\x\\0"),
        ("ImagePositionPatient", b" "),
        ("ImageType", b"ORIGINAL\\PRIMARY\\ AXIAL "),
        ("ImageType", b"ORIGINAL"),
        ("Rows", b"\x04\x00\x05\x00"),
        ("Rows", b""),
        ("EchoNumbers", b"1\\2"),
        ("SOPClassUID", b"1.2.840.10008.5.1.4.1.1.4"),
    ],
)
@pytest.mark.filterwarnings("ignore:Invalid value")
@pytest.mark.parametrize("implicit", [False, True])
def test_a_header_is_what_pydicom_makes_of_it(
    keyword: str, content: bytes, implicit: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Plain elements are read without its conversion; the outcome is the same."""
    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    plain, explicit = pydicom.uid.ImplicitVRLittleEndian, pydicom.uid.ExplicitVRLittleEndian
    dataset.file_meta.TransferSyntaxUID = plain if implicit else explicit
    dataset.SpecificCharacterSet = "ISO_IR 100"
    dataset.SOPClassUID, dataset.SOPInstanceUID = pydicom.uid.CTImageStorage, "1.2.3"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = "1.2.4", "1.2.5"
    dataset.PatientID, dataset.Modality, dataset.SeriesDescription = "P1", "CT", "axial"
    dataset.ImagePositionPatient, dataset.ImageOrientationPatient = [0, 0, 1], [1, 0, 0, 0, 1, 0]
    dataset.ImageType, dataset.Rows, dataset.Columns = ["ORIGINAL", "PRIMARY"], 2, 2
    dataset.SamplesPerPixel, dataset.BitsAllocated = 1, 8
    dataset.PixelData = bytes(4)
    tag = pydicom.datadict.tag_for_keyword(keyword)
    vr = pydicom.datadict.dictionary_VR(tag)
    dataset[tag] = pydicom.dataelem.RawDataElement(
        pydicom.tag.Tag(tag), vr, len(content), content, 0, implicit, True
    )
    dataset.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    assert content.strip() in (tmp_path / "a.dcm").read_bytes()
    fast = headers.read_header(tmp_path / "a.dcm")
    monkeypatch.setattr(headers, "_plain", lambda *_: None)
    monkeypatch.setattr(headers, "RawDataElement", type("Never", (), {}))
    slow = headers.read_header(tmp_path / "a.dcm")
    assert fast == slow
