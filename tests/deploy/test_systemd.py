"""The systemd units, as systemd itself judges them."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fedmed_common import errors

from .conftest import DEPLOY, output, tool

UNITS = DEPLOY / "systemd"
NAMES = ("fedmed-server.service", "fedmed-site.service")
MOST_EXPOSURE = 17  # tenths: 'OK' begins below 2.5


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The units with the path of a program that exists here: systemd verifies that, too."""
    for name in NAMES:
        text = (UNITS / name).read_text().replace("/opt/fedmed/bin/fedmed", sys.executable)
        (tmp_path / name).write_text(text)
    return tmp_path


@pytest.mark.parametrize("name", NAMES)
def test_systemd_finds_nothing_wrong(installed: Path, name: str) -> None:
    assert output(tool("systemd-analyze"), "verify", "--man=no", installed / name) == ""


@pytest.mark.parametrize("name", NAMES)
def test_a_service_is_closed_as_far_as_its_work_permits(installed: Path, name: str) -> None:
    analyze = tool("systemd-analyze")
    if int(output(analyze, "--version").split()[1]) < 250:
        pytest.skip("this systemd-analyze judges running units only")
    output(analyze, "security", "--offline=true", f"--threshold={MOST_EXPOSURE}", installed / name)


def test_a_gpu_opens_its_devices_and_nothing_else(installed: Path) -> None:
    drop_in = installed / "fedmed-site.service.d"
    drop_in.mkdir()
    shutil.copy(UNITS / "gpu.conf", drop_in)
    assert output(tool("systemd-analyze"), "verify", "--man=no", installed / NAMES[1]) == ""


@pytest.mark.parametrize("name", NAMES)
def test_the_program_that_is_named_is_a_command(name: str) -> None:
    line = re.search(r"^ExecStart=/opt/fedmed/bin/fedmed (.+)$", (UNITS / name).read_text(), re.MULTILINE)
    assert line is not None
    done = subprocess.run(
        [sys.executable, "-c", "from fedmed_common.cli import main; main()", *line[1].split(), "--help"],
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr


def test_a_site_is_not_started_again_for_what_only_people_can_mend() -> None:
    found = re.search(r"^RestartPreventExitStatus=(.+)$", (UNITS / NAMES[1]).read_text(), re.MULTILINE)
    final = (errors.ConfigError, errors.OwnExpired, errors.Revoked, errors.VersionMismatch)
    assert found is not None
    assert found[1].split() == [str(error.exit_code) for error in final]


def test_users_are_declared(tmp_path: Path) -> None:
    declared = re.findall(r"^u (\S+)", (UNITS / "fedmed.sysusers").read_text(), re.MULTILINE)
    used = [re.findall(r"^(?:User|Group)=(.+)$", (UNITS / name).read_text(), re.MULTILINE) for name in NAMES]
    assert [[user, user] for user in declared] == used
    output(tool("systemd-sysusers"), "--dry-run", f"--root={tmp_path}", UNITS / "fedmed.sysusers")
