"""What a worker does: it keeps networks and mapped data warm, and carries out one order after the other."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import chain
from multiprocessing.connection import Connection

from flwr.app import Message

from fedmed_client.work.frames import data_of, filled, head, outline, read_head
from fedmed_client.workbench import SiteHome
from fedmed_simulations.grid import Sites, app_of
from fedmed_simulations.workers.memory import hand_over, taken_over, written

_STEP_SECONDS = 0.1


def sites_of(homes: Sequence[SiteHome], on_step: Callable[[str, int], None] | None = None) -> Sites:
    """The sites as a worker carries out their orders."""
    if on_step is not None:
        homes = [replace(home, on_step=on_step) for home in homes]
    return Sites(app_of(homes), len(homes))


def serve(connection: Connection, homes: Sequence[SiteHome]) -> None:
    """Carry out what comes over the connection until its other end is closed.

    An order is a line that announces it, its outline, and the memory of those of its arrays that this process has not mapped yet;
    a reply is a line, its outline, and the memory of its arrays.

    Raises:
        EOFError: the other end is gone.
    """
    sites = sites_of(homes, _teller(connection))
    laid: dict[int, list[memoryview]] = {}
    connection.send_bytes(head(ready=True))
    while True:
        announced = read_head(connection.recv_bytes())
        drawn = connection.recv_bytes()
        for number, sizes in announced["new"]:
            laid[number] = taken_over(connection, sizes)
        for number in laid.keys() - set(announced["held"]):
            del laid[number]
        arrays = chain.from_iterable(laid[number] for number in announced["records"])
        reply = sites.carry_out(filled(drawn, arrays))
        del arrays
        _answer(connection, reply)
        del reply


def _answer(connection: Connection, reply: Message) -> None:
    """Send it; its arrays belong to the other end from then on."""
    parts = data_of(reply)
    sizes = [len(part) for part in parts]
    connection.send_bytes(head(sizes=sizes))
    connection.send_bytes(outline(reply))
    with written(parts) as file:
        hand_over(connection, file, sizes)


def _teller(connection: Connection) -> Callable[[str, int], None]:
    """What tells of training steps, some ten times a second at most."""
    told = 0.0

    def on_step(_site: str, step: int) -> None:
        nonlocal told
        now = time.monotonic()
        if now - told >= _STEP_SECONDS:
            told = now
            connection.send_bytes(head(step=step))

    return on_step
