"""A site's home: a random number of its own, one process a role, a socket path that the system takes."""

from __future__ import annotations

import fcntl
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from fedmed_client.site.home import SiteFolder
from fedmed_common.errors import ConfigError, ProvisionError


def test_the_instance_is_made_once_also_by_many_at_a_time(tmp_path: Path) -> None:
    code = "import sys; from pathlib import Path; from fedmed_client.site.home import SiteFolder; "
    code += "print(SiteFolder(Path(sys.argv[1])).instance())"
    command = [sys.executable, "-c", code, str(tmp_path)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    numbers = {process.communicate(timeout=60)[0].strip() for process in processes}
    assert numbers == {SiteFolder(tmp_path).instance()}
    assert len(numbers.pop()) == 32
    other = tmp_path / "other"
    other.mkdir()
    assert SiteFolder(other).instance() != SiteFolder(tmp_path).instance()
    assert {path.name for path in tmp_path.iterdir()} == {"instance", "other"}


def test_a_role_is_held_by_one_process_and_freed_by_its_end(tmp_path: Path) -> None:
    home = SiteFolder(tmp_path)
    code = "import sys, time; from pathlib import Path; from fedmed_client.site.home import SiteFolder\n"
    code += "with SiteFolder(Path(sys.argv[1])).locked('link'): print(flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code, str(tmp_path)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        with (
            pytest.raises(ProvisionError, match="another process is at work here as 'link'"),
            home.locked("link"),
        ):
            pass
        with home.locked("worker"):
            pass
        assert home.is_held("link")
        assert not home.is_held("worker")
    finally:
        process.kill()
        process.communicate()
    with home.locked("link"):
        pass


def test_to_look_whether_a_role_is_held_is_in_nobodys_way(tmp_path: Path) -> None:
    home = SiteFolder(tmp_path)
    assert not home.is_held("start")
    with home.locked("start"):
        pass
    with (home.run / "start.lock").open() as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        assert not home.is_held("start")
        threading.Timer(0.1, fcntl.flock, (looking, fcntl.LOCK_UN)).start()
        with home.locked("start"):
            pass


def test_a_socket_lies_in_the_home_unless_its_path_is_too_long(tmp_path: Path) -> None:
    short, long = SiteFolder(Path("/srv/north")), SiteFolder(tmp_path / ("n" * 120))
    assert short.worker_socket == Path("/srv/north/run/worker.sock")
    assert long.worker_socket == SiteFolder(long.path).worker_socket
    assert long.worker_socket != SiteFolder(tmp_path / ("m" * 120)).worker_socket
    assert str(os.getuid()) in str(long.worker_socket)
    long.worker_socket.parent.mkdir(mode=0o700)
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(long.worker_socket))
    finally:
        long.worker_socket.unlink(missing_ok=True)
        long.worker_socket.parent.rmdir()


def test_an_empty_folder_says_what_to_do(tmp_path: Path) -> None:
    home = SiteFolder(tmp_path)
    with pytest.raises(ConfigError, match="fix: fedmed site init KIT"):
        home.connection()
    with pytest.raises(ProvisionError, match=r"site.key: No such file"):
        home.key()
    with pytest.raises(ProvisionError, match="fedmed site join ANSWER"):
        home.certificate()
