"""A relay's end."""

from __future__ import annotations

import gc
import socket
import threading
from contextlib import suppress

from fedmed_simulations.rehearsal.relay import Relay


def test_a_relay_that_ends_leaves_no_connection_that_was_just_being_taken() -> None:
    """What it leaves is warned of when it is collected, and every warning fails."""
    with socket.create_server(("127.0.0.1", 0)) as there:
        for _ in range(20):
            done = threading.Event()
            with Relay(there.getsockname()[1]) as relay:
                coming = threading.Thread(target=_come_again_and_again, args=(relay.port, done))
                coming.start()
                while relay.connections < 5:
                    done.wait(0.001)
            done.set()
            coming.join()
            gc.collect()


def _come_again_and_again(port: int, done: threading.Event) -> None:
    while not done.is_set():
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            pass
