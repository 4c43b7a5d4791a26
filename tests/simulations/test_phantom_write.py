"""Writing: the same bytes always, also after an interruption; nothing of the user's is overwritten."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fedmed_common.errors import ConfigError
from fedmed_simulations.phantom.settings import PhantomSettings
from fedmed_simulations.phantom.write import RECORD, UNFINISHED, write_federation

SETTINGS = PhantomSettings(sites=4, patients=2, shape=(32, 32, 16), seed=7)
OPTIONS = ["--sites", "4", "--patients", "2", "--shape", "32,32,16", "--seed", "7"]
FEDMED = [sys.executable, "-c", "from fedmed_common.cli import main; main()", "phantom"]


def _bytes(folder: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a federation written without interruption in one process."""
    folder = tmp_path_factory.mktemp("whole")
    assert write_federation(folder, SETTINGS, workers=1)
    return _bytes(folder)


def test_two_processes_write_the_same_bytes(tmp_path: Path, whole: dict[str, bytes]) -> None:
    assert write_federation(tmp_path, SETTINGS, workers=2)
    assert _bytes(tmp_path) == whole


def test_another_seed_shares_no_image_and_no_uid(tmp_path: Path, whole: dict[str, bytes]) -> None:
    write_federation(tmp_path, PhantomSettings(sites=4, patients=1, shape=(32, 32, 16), seed=8), workers=1)
    images = {name: data for name, data in _bytes(tmp_path).items() if name.endswith((".dcm", ".gz"))}
    assert images
    assert all(whole[name] != data for name, data in images.items())
    assert PhantomSettings(seed=8).uid("a") != PhantomSettings(seed=7).uid("a")


@pytest.mark.parametrize(("stop", "exit_code"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)])
def test_stopped_writing_is_continued_to_the_same_bytes(
    tmp_path: Path, whole: dict[str, bytes], stop: signal.Signals, exit_code: int
) -> None:
    folder = tmp_path / "federation"
    heeding = ["env", "--default-signal=INT"]  # a test run in the background may have it ignored
    process = subprocess.Popen(
        [*heeding, *FEDMED, str(folder), *OPTIONS, "--workers", "2"], stdout=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 60
    while not list(folder.glob("*/dicom/*")) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, stop)
    assert process.wait() == exit_code
    time.sleep(0.5)  # orphaned workers notice and end
    assert not (folder / RECORD).exists()
    assert not list(folder.glob("*/site.toml"))
    assert write_federation(folder, SETTINGS, workers=1)
    assert _bytes(folder) == whole
    assert not (folder / UNFINISHED).exists()


def test_a_finished_federation_is_left_alone(tmp_path: Path) -> None:
    settings = PhantomSettings(sites=1, patients=1, shape=(16, 16, 8))
    assert write_federation(tmp_path, settings, workers=1)
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")}
    assert not write_federation(tmp_path, settings, workers=1)
    assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")} == before
    with pytest.raises(ConfigError, match="other settings"):
        write_federation(tmp_path, PhantomSettings(sites=1, patients=2, shape=(16, 16, 8)))


def test_a_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match="not empty"):
        write_federation(tmp_path, SETTINGS)
    with pytest.raises(ConfigError, match="not a folder"):
        write_federation(tmp_path / "thesis.txt", SETTINGS)
    assert _bytes(tmp_path) == {"thesis.txt": b"mine"}


@pytest.mark.parametrize(
    "options",
    [
        ["--shape", "32,32"],
        ["--shape", "a,b,c"],
        ["--shape", "4,4,4"],
        ["--alpha", "0"],
        ["--sites", "0"],
        ["--sites", "x"],
    ],
)
def test_a_bad_option_is_one_clear_error(tmp_path: Path, options: list[str]) -> None:
    folder = tmp_path / "federation"
    done = subprocess.run([*FEDMED, str(folder), *options], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert options[0].strip("-") in done.stderr
    assert "Traceback" not in done.stderr
    assert not folder.exists()


def test_the_command_shows_what_it_wrote_and_then_does_nothing(tmp_path: Path) -> None:
    command = [*FEDMED, str(tmp_path / "f"), "--sites", "2", "--patients", "1", "--shape", "16,16,8"]
    first = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "north" in first.stdout
    assert "seg-binary" in first.stdout
    assert "2 patients written" in first.stdout
    second = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "nothing was written" in second.stdout
