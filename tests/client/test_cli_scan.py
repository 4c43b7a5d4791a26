"""``fedmed site scan`` shows what a folder holds, and nothing that a header could do to the terminal."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fedmed_common.cli import root_command, run

PIXELS = np.arange(24, dtype=np.uint16).reshape(4, 6)
WriteSlice = Callable[..., Path]


@pytest.fixture
def folder(tmp_path: Path, write_slice: WriteSlice, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "120")
    folder = tmp_path / "data"
    folder.mkdir()
    for k in range(3):
        path = write_slice(folder / f"{k}.dcm", PIXELS, ImagePositionPatient=[0, 0, k], Modality="M_RED_R")
        path.write_bytes(path.read_bytes().replace(b"M_RED_R", b"M[red]R"))
    write_slice(folder / "nobody.dcm", PIXELS, PatientID="")
    (folder / "bad\x1b[31m[red].dcm").write_bytes(b"x")
    (folder / "notes.txt").write_text("x")
    return folder


def test_tables(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(root_command(), ["site", "scan", str(folder)]) == 0
    shown = capsys.readouterr().out
    for expected in (
        "1 patients",
        "M[red]R series",
        "no-patient",
        "nobody.dcm",
        "[31m[red].dcm",
        "1 other files are not DICOM",
    ):
        assert expected in shown
    assert "Nothing of this leaves the machine" in shown
    assert "\x1b" not in shown
    assert len(list((folder.parent / "cache/fedmed/index").iterdir())) == 1


def test_json(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index = tmp_path / "mine.db"
    assert (
        run(root_command(), ["site", "scan", str(folder), "--json", "--index", str(index), "--workers", "2"])
        == 0
    )
    found = json.loads(capsys.readouterr().out)
    assert [len(series["files"]) for series in found["series"]] == [3]
    assert sorted(item["code"] for item in found["skipped"]) == ["no-patient", "not-dicom", "unreadable-file"]
    assert index.exists()
    assert not (tmp_path / "cache").exists()


def test_a_missing_folder_is_one_clear_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(root_command(), ["site", "scan", str(tmp_path / "absent")]) == 2
    assert "is not a folder" in capsys.readouterr().err
