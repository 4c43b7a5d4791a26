"""``fedmed serve``: its processes live and end together, and what is missing is said before anything starts."""

from __future__ import annotations

import os
import signal
import socket
import stat
from pathlib import Path
from typing import Any

import pytest

from fedmed_common.children import pid_file
from fedmed_common.errors import ConfigError, ProvisionError
from fedmed_server.deployment.serve import check
from fedmed_simulations.rehearsal.machines import wait_for

PROGRAM = "import sys; from fedmed_common.cli import main; sys.argv[0] = 'fedmed'; main()"


def _start(server: Any) -> None:
    server.start("-c", PROGRAM, "serve", "--home", str(server.home.path))


def _pid(server: Any, role: str) -> int:
    return int(pid_file(server.home.path, role).read_text())


def test_a_superlink_that_is_killed_is_started_again_and_all_end_with_the_server(own_server: Any) -> None:
    _start(own_server)
    first = _pid(own_server, "superlink")
    assert _pid(own_server, "serve") == own_server.process.pid
    os.kill(first, signal.SIGKILL)
    wait_for(lambda: _running(own_server) not in {0, first}, "another superlink is started", 30.0)
    own_server.wait_serving()
    second = _pid(own_server, "superlink")
    assert own_server.stop() == 0
    assert not Path(f"/proc/{second}").exists()
    assert list((own_server.home.path / "run").glob("*.pid")) == []
    assert own_server.contacted <= {"127.0.0.1", "localhost"}


def test_a_server_that_is_killed_leaves_no_superlink(own_server: Any) -> None:
    _start(own_server)
    superlink = _pid(own_server, "superlink")
    own_server.kill()
    wait_for(lambda: not Path(f"/proc/{superlink}").exists(), "the superlink ends", 10.0)


def test_what_is_missing_is_named(own_server: Any) -> None:
    home = own_server.home
    check(home)
    assert [stat.S_IMODE(file.stat().st_mode) for file in (home.control_token, home.superexec_secret)] == [
        0o600
    ] * 2
    secret = home.control_token.read_text()
    check(home)
    assert home.control_token.read_text() == secret
    for file, error in ((home.key, ProvisionError), (home.registry, ProvisionError)):
        content = file.read_bytes()
        file.unlink()
        with pytest.raises(error, match=file.name):
            check(home)
        file.write_bytes(content)
    home.settings_file.write_text('name = "test"\n[public]\nprot = 1\n')
    with pytest.raises(ConfigError, match=r"public\.prot: unknown key\n.*did you mean 'port'"):
        check(home)


@pytest.mark.parametrize("part", ["public", "private", "health"])
def test_a_port_that_is_taken_is_named(own_server: Any, part: str) -> None:
    port = getattr(own_server.home.settings(), part).port
    said = rf"{part}\.port: cannot listen at 127\.0\.0\.1, port {port}"
    with socket.create_server(("127.0.0.1", port)), pytest.raises(ConfigError, match=said):
        check(own_server.home)
    check(own_server.home)


def _running(server: Any) -> int:
    try:
        return _pid(server, "superlink")
    except FileNotFoundError:
        return 0
