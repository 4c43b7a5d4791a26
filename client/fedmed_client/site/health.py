"""How a site is, by the standard gRPC health protocol on a Unix socket: no port is opened for it.

``""`` is the site as a whole, ``link`` and ``worker`` are its parts. A site that cannot reach its coordinator is healthy:
to start it anew would not help.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from fedmed_client.site.home import SiteFolder
from fedmed_client.work.frames import address
from fedmed_common.children import pid_file
from fedmed_common.errors import FedmedError
from fedmed_common.health import check

_EVERY_SECONDS = 1.0
_PARTS = ("link", "worker")


def socket_of(home: SiteFolder) -> Path:
    """Where a site that runs tells how it is."""
    return home.worker_socket.absolute().with_name("health.sock")


@contextmanager
def told(home: SiteFolder) -> Iterator[None]:
    """Within, this process answers how its site is."""
    state = health.HealthServicer()
    server = grpc.server(ThreadPoolExecutor(2))
    health_pb2_grpc.add_HealthServicer_to_server(state, server)
    socket, end = socket_of(home), threading.Event()
    make_private(socket.parent)
    socket.unlink(missing_ok=True)
    server.add_insecure_port(address(socket))
    server.start()
    watch = threading.Thread(target=_watch, args=(home, state, end), daemon=True)
    watch.start()
    try:
        yield
    finally:
        end.set()
        server.stop(None).wait()
        socket.unlink(missing_ok=True)


def make_private(folder: Path) -> None:
    """Make a folder that is this user's alone. In a temporary folder, somebody else may have made it before.

    Raises:
        FedmedError: it is not.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    state = folder.lstat()
    if folder.is_symlink() or state.st_uid != os.getuid() or state.st_mode & 0o022:
        raise FedmedError(
            f"{folder} can be written by others\n  fix: delete it, or set TMPDIR to another folder"
        )


def _watch(home: SiteFolder, state: health.HealthServicer, end: threading.Event) -> None:
    while True:
        fine = {part: _lives(home.path, part) for part in _PARTS}
        fine["worker"] = fine["worker"] and _serves(home)
        for name, value in {**fine, "": all(fine.values())}.items():
            state.set(name, _STATUS[value])
        if end.wait(_EVERY_SECONDS):
            return


_STATUS = {
    True: health_pb2.HealthCheckResponse.SERVING,
    False: health_pb2.HealthCheckResponse.NOT_SERVING,
}


def _lives(folder: Path, role: str) -> bool:
    try:
        os.kill(int(pid_file(folder, role).read_text()), 0)
    except (OSError, ValueError):
        return False
    return True


def _serves(home: SiteFolder) -> bool:
    try:
        check(address(home.worker_socket.absolute()), seconds=_EVERY_SECONDS)
    except FedmedError:
        return False
    return True
