"""A site as its administrator runs it, beside a real server: started, looked at, hurt, stopped."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tomli_w
from PIL import Image

from fedmed_client.site.audit import AuditLog
from fedmed_client.site.health import socket_of
from fedmed_client.site.home import SiteFolder
from fedmed_client.site.start import is_running
from fedmed_client.site.status import status
from fedmed_client.work.frames import address
from fedmed_common import health
from fedmed_common.errors import FedmedError
from fedmed_simulations.rehearsal.consortium import Consortium
from fedmed_simulations.rehearsal.machines import FEDMED, Machine, fedmed, wait_for

NAME = "alpha"
READ_ONLY = (
    'mount --bind "$0" "$0" && mount -o remount,ro,bind / && '
    'exec setpriv --bounding-set=-all --inh-caps=-all --no-new-privs "$@"'
)


@pytest.fixture(scope="module")
def consortium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Consortium]:
    """A server that runs, and a hospital that has joined and does not run yet."""
    folder = tmp_path_factory.mktemp("c")
    data = folder / "federation" / NAME
    for name in ("images", "labels"):
        (data / name).mkdir(parents=True)
        for number in range(5):
            Image.fromarray(np.eye(16, dtype=np.uint8)).save(data / name / f"{number}.png")
    site = {"name": NAME, "data": {"format": "images", "root": "."}, "labels": {"disc": ["1"]}}
    (data / "site.toml").write_text(tomli_w.dumps(site))
    with Consortium(folder / "k", [NAME], {"OMP_NUM_THREADS": "1"}) as machines:
        machines.found(folder / "federation")
        machines.set_site(NAME, device={"gpu": "none"}, limits={"least_free_gb": 0.0})
        machines.start_server()
        yield machines


@pytest.fixture
def home(consortium: Consortium) -> Iterator[SiteFolder]:
    """The hospital's folder; its site does not run when the test begins, nor when it has ended."""
    folder = SiteFolder(consortium.site(NAME))
    yield folder
    if NAME in consortium.machines:
        consortium.kill(NAME)


def _serving(home: SiteFolder) -> bool:
    try:
        health.check(address(socket_of(home)), seconds=1)
    except FedmedError:
        return False
    return True


def _events(home: SiteFolder) -> list[str]:
    AuditLog(home.path).verify()
    return [json.loads(line)["event"] for line in home.audit_file.read_text().splitlines()]


def _listening(tree: set[int]) -> set[str]:
    """The TCP sockets at which one of the processes listens."""
    lines = [
        line.split()
        for kind in ("tcp", "tcp6")
        for line in Path(f"/proc/net/{kind}").read_text().splitlines()
    ]
    open_now = {fields[9]: fields[1] for fields in lines if fields[3] == "0A"}
    held = {
        str(link.readlink())
        for pid in tree
        for link in Path(f"/proc/{pid}/fd").iterdir()
        if link.is_symlink()
    }
    return {place for inode, place in open_now.items() if f"socket:[{inode}]" in held}


def _lives(pid: int) -> bool:
    """Whether it runs; one that has ended and that nobody has asked after does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _tree(root: int) -> set[int]:
    """A process and all that descend from it."""
    parents = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
    found = {root}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def test_a_site_runs_until_it_is_stopped(consortium: Consortium, home: SiteFolder) -> None:
    consortium.start_site(NAME)
    consortium.wait_connected()
    consortium.wait_until(lambda: _serving(home), "the site is healthy")
    tree = _tree(consortium.machines[NAME].pid)
    assert len(tree) == 3
    assert _listening(tree) == set()
    found = status(home)
    assert (found["runs"], found["waits_for"]) == (True, None)
    assert {found["link"], found["worker"]} < tree
    assert fedmed("site", "health", "--home", str(home.path)).strip() == "serving"
    with pytest.raises(FedmedError, match="another process is at work here as 'start'"):
        fedmed("site", "start", "--home", str(home.path))
    assert fedmed("site", "stop", "--home", str(home.path)).strip() == "stopped"
    assert consortium.machines.pop(NAME).exit_code == 0
    assert [pid for pid in tree if _lives(pid)] == []
    assert not is_running(home)
    assert list(home.run.glob("*.sock")) == []
    assert fedmed("site", "stop", "--home", str(home.path)).strip() == "no site runs here"
    assert (_events(home)[0], _events(home)[-1]) == ("started", "stopped")
    assert re.match(r"\d+ lines, whole", fedmed("site", "audit", "--home", str(home.path)))


def test_a_part_that_is_killed_comes_back_and_a_power_cut_leaves_nothing_in_the_way(
    consortium: Consortium, home: SiteFolder
) -> None:
    consortium.start_site(NAME)
    consortium.wait_until(lambda: _serving(home), "the site is healthy")
    for role in ("worker", "link"):
        before = status(home)[role]
        os.kill(before, signal.SIGKILL)
        consortium.wait_until(lambda: status(home)[role] not in {None, before}, "the part is back")  # noqa: B023
        consortium.wait_until(lambda: _serving(home), "the site is healthy again")
    tree = _tree(consortium.machines[NAME].pid)
    consortium.kill(NAME)
    assert not is_running(home)
    consortium.start_site(NAME)
    consortium.wait_until(lambda: _serving(home), "the site is healthy after the cut")
    consortium.wait_connected()
    assert consortium.stop(NAME) == 0
    assert [pid for pid in tree if _lives(pid)] == []


def test_a_site_works_where_only_its_folder_can_be_written(consortium: Consortium, home: SiteFolder) -> None:
    """Without any right of an administrator, on a system that is mounted read-only."""
    prefix = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", READ_ONLY, str(home.path)]
    if (
        not shutil.which("setpriv")
        or subprocess.run([*prefix, "true"], check=False, capture_output=True).returncode
    ):
        pytest.skip("this machine permits no mount of its own")
    temporary = home.path / "tmp"
    temporary.mkdir(exist_ok=True)
    environment = {"TMPDIR": str(temporary), "HOME": "/nonexistent", "OMP_NUM_THREADS": "1"}
    command = [*prefix, *FEDMED, "site", "start", "--home", str(home.path)]
    log = consortium.folder / "log" / "read-only.log"
    with log.open("wb"):
        machine = Machine(command, log=log, environment=environment)
    try:
        wait_for(lambda: _serving(home), "the site is healthy", 120, [machine])
        consortium.wait_connected()
    finally:
        code = machine.stop()
    assert code == 0
    assert "Read-only" not in log.read_text()


def test_a_disk_that_takes_nothing_is_told_in_a_sentence(
    consortium: Consortium, home: SiteFolder, tmp_path: Path
) -> None:
    full = tmp_path / "full"
    shutil.copytree(home.path, full, ignore=shutil.ignore_patterns("run"))
    done = subprocess.run(
        [*FEDMED, "site", "start", "--home", str(full)],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0)),
    )
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {full}: cannot be written: ")
    assert "\n  fix: free space on its disk" in done.stderr


def test_a_folder_that_cannot_connect_is_not_started(tmp_path: Path) -> None:
    for needed, missing in (("", "site.toml"), ("site.toml", "connection.json")):
        if needed:
            (tmp_path / needed).write_text(
                tomli_w.dumps({"name": NAME, "data": {"format": "images", "root": "."}, "labels": {}})
            )
        done = subprocess.run(
            [*FEDMED, "site", "start", "--home", str(tmp_path)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 2
        assert missing in done.stderr
        assert "fix:" in done.stderr


def test_a_site_without_its_server_ends_with_the_reason(
    consortium: Consortium, home: SiteFolder, tmp_path: Path
) -> None:
    """The link's exit code is the site's, and its sentence is on the screen once."""
    alone = tmp_path / "alone"
    shutil.copytree(home.path, alone, ignore=shutil.ignore_patterns("run"))
    document = json.loads((alone / "connection.json").read_text())
    (alone / "connection.json").write_text(json.dumps({**document, "address": "127.0.0.1:1"}))
    done = subprocess.run(
        [*FEDMED, "site", "start", "--home", str(alone)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 18
    assert done.stderr.count("127.0.0.1:1") >= 1
