"""A site's main process: it keeps the link and the worker alive until it is told to stop.

It writes below the site's folder and the temporary folder alone, listens at no port, and needs no rights.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from contextlib import suppress
from importlib.metadata import version

from fedmed_client.site import health
from fedmed_client.site.audit import AuditLog
from fedmed_client.site.home import SiteFolder
from fedmed_client.work.limits import visible_gpu
from fedmed_common import children, errors
from fedmed_common.children import Child, Supervisor
from fedmed_common.config import Site
from fedmed_common.errors import ConfigError, ConnectionProblem, FedmedError

_LONGEST_STOP_SECONDS = 20.0
_PROBLEMS: dict[int, type[ConnectionProblem]] = {
    kind.exit_code: kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, ConnectionProblem)
}
_FINAL = frozenset({*_PROBLEMS, ConfigError.exit_code})


def start(home: SiteFolder) -> int:
    """Run the site until SIGTERM or Ctrl-C; the exit code of a part after whose end it makes no sense to go on, or 0.

    Raises:
        ConfigError, ProvisionError: the folder is not that of a site that can connect, or its site runs already.
        FedmedError: the folder cannot be written; a full disk is the usual cause.
    """
    site = home.site()
    for needed in (home.connection, home.key, home.certificate):
        needed()
    os.umask(0o077)
    try:
        return _run(home, site)
    except OSError as error:
        raise FedmedError(
            f"{home.path}: cannot be written: {error.strerror}\n"
            "  fix: free space on its disk, see that this user may write there, and start the site again"
        ) from error


def _run(home: SiteFolder, site: Site) -> int:
    audit = AuditLog(home.path)
    with home.locked("start"):
        supervisor = Supervisor(home.path, _parts(home, site))
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: supervisor.stop())
        children.write_pid(home.path, "start")
        audit.append("started", version=version("fedmed"))
        try:
            with health.told(home):
                code = supervisor.run()
        finally:
            children.pid_file(home.path, "start").unlink(missing_ok=True)
            _remove_socket(home)
        audit.append("stopped", code=code)
    return code


def _remove_socket(home: SiteFolder) -> None:
    """The worker's: it is ended by a signal. A folder that was made for sockets alone goes with it."""
    home.worker_socket.unlink(missing_ok=True)
    with suppress(OSError):
        home.worker_socket.parent.rmdir()


def stop(home: SiteFolder) -> bool:
    """Stop the folder's site and wait for its end; False where none runs.

    Raises:
        FedmedError: it does not end.
    """
    end = time.monotonic() + _LONGEST_STOP_SECONDS
    asked = False
    while is_running(home):
        if time.monotonic() > end:
            raise _does_not_stop(home)
        with suppress(OSError, ValueError):
            asked |= _stop_process(home, end)
        time.sleep(0.05)
    return asked


def _stop_process(home: SiteFolder, end: float) -> bool:
    """Ask the process once, and wait for its very end: it frees the folder before, and a second signal in between
    would end it as one that was killed.
    """
    process = os.pidfd_open(int(children.pid_file(home.path, "start").read_text()))
    try:
        signal.pidfd_send_signal(process, signal.SIGTERM)
        if not select.select([process], [], [], max(end - time.monotonic(), 0.0))[0]:
            raise _does_not_stop(home)
    finally:
        os.close(process)
    return True


def _does_not_stop(home: SiteFolder) -> FedmedError:
    return FedmedError(f"the site in {home.path} does not stop\n  fix: end its process by hand")


def is_running(home: SiteFolder) -> bool:
    """Whether the folder's site runs."""
    return home.is_held("start")


def _parts(home: SiteFolder, site: Site) -> tuple[Child, Child]:
    environment = {
        "FEDMED_HOME": str(home.path),
        "FLWR_HOME": str(home.run),
        "MPLCONFIGDIR": str(home.run),
        **visible_gpu(site.device),
    }
    link, worker = (
        Child(
            role=role,
            command=(sys.executable, "-m", module, str(home.path)),
            environment=environment,
            final_codes=_FINAL,
        )
        for role, module in (("link", "fedmed_client.link.link"), ("worker", "fedmed_client.work.worker"))
    )
    return link, worker
