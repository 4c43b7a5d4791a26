"""A worker process on this machine, from its first line on. Imports nothing heavy before it is told what it may use."""

from __future__ import annotations

import os
import signal
from multiprocessing.connection import Connection

from fedmed_common import logs
from fedmed_common.processes import prepare_worker


def main(connection: Connection, environment: dict[str, str]) -> None:
    """Wait for the sites, then carry out their orders until the process that started this one is gone."""
    prepare_worker()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    os.environ.update(environment)
    logs.set_up()
    try:
        homes = connection.recv()
        from fedmed_simulations.workers.service import serve

        serve(connection, homes)
    except (EOFError, ConnectionError):
        return
