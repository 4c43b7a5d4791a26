"""What the rehearsal is made of: machines that end as a whole, a network that can be cut, weights that are compared."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from fedmed_common.errors import FedmedError
from fedmed_simulations.rehearsal.equality import difference
from fedmed_simulations.rehearsal.machines import Machine, fedmed, free_ports, wait_for
from fedmed_simulations.rehearsal.namespaces import Namespaces
from fedmed_simulations.rehearsal.relay import Relay

WITH_CHILD = (
    "import subprocess, sys, time\n"
    "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
    "print(child.pid, flush=True)\ntime.sleep(600)"
)


@pytest.fixture
def echo() -> Iterator[int]:
    """The port of a server that sends back what it gets."""
    listener = socket.create_server(("127.0.0.1", 0))
    taken: list[socket.socket] = []

    def answer(connection: socket.socket) -> None:
        try:
            while data := connection.recv(1024):
                connection.sendall(data)
        except OSError:
            return

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            taken.append(connection)
            threading.Thread(target=answer, args=(connection,), daemon=True).start()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield listener.getsockname()[1]
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join()
    for connection in taken:
        connection.close()


def _says(connection: socket.socket, text: bytes, seconds: float = 10.0) -> bytes | None:
    """What comes back; None where nothing does in time."""
    connection.settimeout(seconds)
    try:
        connection.sendall(text)
        return connection.recv(1024)
    except TimeoutError:
        return None
    except OSError:
        return b""


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_a_machine_ends_with_all_that_runs_on_it(tmp_path: Path, end: str) -> None:
    machine = Machine([sys.executable, "-c", WITH_CHILD], log=tmp_path / "machine.log")
    try:
        wait_for(lambda: machine.tail().strip().isdigit(), "the child starts", 30, [machine])
        child = Path(f"/proc/{machine.tail().strip()}/stat")
    finally:
        machine.stop() if end == "stop" else machine.kill()
    wait_for(
        lambda: not child.exists() or child.read_text().rpartition(")")[2].split()[0] == "Z", "its end", 30
    )


def test_waiting_for_a_machine_that_ended_says_what_it_printed(tmp_path: Path) -> None:
    machine = Machine(
        [sys.executable, "-c", "print('no power'); raise SystemExit(3)"], log=tmp_path / "north.log"
    )
    with pytest.raises(FedmedError, match=r"north ended with 3; it printed last:\nno power"):
        wait_for(lambda: False, "something", 30, [machine])


def test_a_command_that_fails_speaks_for_itself() -> None:
    with pytest.raises(FedmedError, match="no such file"):
        fedmed("simulate", "/nowhere.toml")


def test_free_ports_are_free_and_different() -> None:
    ports = free_ports(5)
    assert len(set(ports)) == 5
    for port in ports:
        socket.create_server(("127.0.0.1", port)).close()


def test_a_relay_passes_bytes_until_it_is_stalled_or_cut(echo: int, tmp_path: Path) -> None:
    with Relay(echo, record=tmp_path / "record") as relay:

        def connect() -> socket.socket:
            return socket.create_connection(("127.0.0.1", relay.port))

        with connect() as line:
            assert _says(line, b"one") == b"one"
            relay.stall()
            assert _says(line, b"two", 0.2) is None
            relay.restore()
            assert line.recv(1024) == b"two"
            relay.reset()
            assert _says(line, b"three") == b""
        relay.cut()
        with connect() as line:
            assert _says(line, b"four") == b""
        relay.restore()
        with connect() as line:
            assert _says(line, b"five") == b"five"
    assert (tmp_path / "record").read_bytes() == b"oneonetwotwofivefive"


def test_weights_are_equal_to_the_last_bit_or_named(tmp_path: Path) -> None:
    one = {"a": np.array([0.0, 1.0], np.float32), "b": np.zeros(2, np.float32)}
    save_file(one, tmp_path / "one")
    save_file({**one, "a": np.array([-0.0, 1.0], np.float32)}, tmp_path / "other")
    save_file({"a": one["a"]}, tmp_path / "less")
    assert difference(tmp_path / "one", tmp_path / "one") == ""
    assert difference(tmp_path / "one", tmp_path / "other").startswith("a: ")
    assert difference(tmp_path / "one", tmp_path / "less") == "other names: ['b']"


@pytest.mark.skipif(not Namespaces.permitted(), reason="networks cannot be made here")
def test_a_hospital_s_network_reaches_the_server_and_nothing_else() -> None:
    program = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 5)"
    with (
        Namespaces(["north", "south"]) as networks,
        socket.create_server(("0.0.0.0", 0)) as server,  # noqa: S104
        socket.create_server(("127.0.0.1", 0)) as private,
    ):
        ports = {"server": server.getsockname()[1], "private": private.getsockname()[1]}
        for cable in networks.cables.values():

            def reaches(host: str, port: str, prefix: tuple[str, ...] = cable.prefix) -> bool:
                command = [*prefix, sys.executable, "-c", program, host, str(ports[port])]
                return subprocess.run(command, capture_output=True, check=False).returncode == 0

            assert reaches(cable.server, "server")
            assert not reaches(cable.server, "private")
            assert not reaches("127.0.0.1", "server")
            assert not reaches("198.51.100.1", "server")
