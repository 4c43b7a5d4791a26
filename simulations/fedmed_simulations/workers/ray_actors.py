"""Workers as Ray actors, on as many machines as the cluster has. Ray is imported when a crew is made.

The parameters of a round are put into Ray's store once, and each machine fetches them once. What comes from a site crosses as
plain bytes: nothing of it is unpickled here. An actor that is gone, with its machine or without it, is replaced by another, which
Ray starts as soon as there is a place for it.
"""

from __future__ import annotations

import secrets
import socket
from collections.abc import Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Message
from numpy.typing import NDArray

from fedmed_client.work.frames import data_of, filled, head, outline, read_head
from fedmed_client.workbench import SiteHome
from fedmed_common.errors import WorkerLost
from fedmed_simulations.workers.crew import Answered, Failed, Lost, Post, Ready, Shelf
from fedmed_simulations.workers.memory import cut, joined

_PACKAGES = ("fedmed", "flwr", "torch", "monai", "numpy")
_MARK = ".seen-by-workers"
_LENGTH = 8
_ENDING_SECONDS = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """What an actor needs to have: the file with the ``word``, where the run's folder is shared, and the driver's packages."""

    mark: Path
    word: str
    versions: dict[str, str]

    def problem(self) -> str:
        """Why this machine cannot work for the run; '' where it can."""
        host = socket.gethostname()
        if not self.mark.is_file() or self.mark.read_text() != self.word:
            return (
                f"the machine '{host}' does not see {self.mark.parent}\n"
                "  fix: keep runs and data where all machines of the cluster have them under the same path"
            )
        others = {name: found for name, found in versions().items() if self.versions[name] != found}
        if others:
            told = ", ".join(
                f"{name} {found} where {self.versions[name]} is here" for name, found in others.items()
            )
            return f"the machine '{host}' has {told}\n  fix: install the same versions on all machines"
        return ""


def versions() -> dict[str, str]:
    """Of the packages that decide on a result, on this machine."""
    return {name: version(name) for name in _PACKAGES}


class SiteActor:
    """What runs in a Ray actor: the sites, whose networks and data stay warm."""

    def __init__(self, homes: Sequence[SiteHome], place: Place) -> None:
        self._homes, self._place = homes, place
        self._sites: Any = None

    def ready(self) -> str:
        """Why nothing can be done here; '' where it can, and all is imported."""
        problem = self._place.problem()
        if not problem:
            from fedmed_simulations.workers.service import sites_of

            self._sites = sites_of(self._homes)
        return problem

    def carry(self, drawn: bytes, sizes: Sequence[Sequence[int]], *laid: NDArray[np.uint8]) -> bytes:
        """The reply to an order: its outline, and of each of its records the arrays, as :func:`memory.joined` lays them out."""
        views = [
            view for array, sizes_of in zip(laid, sizes, strict=True) for view in cut(array.data, sizes_of)
        ]
        return packed(self._sites.carry_out(filled(drawn, views)))


def packed(message: Message) -> bytes:
    """A message as bytes, its arrays at multiples of 64."""
    drawn, arrays = outline(message), data_of(message)
    announced = head(size=len(drawn), arrays=[len(data) for data in arrays])
    return joined([len(announced).to_bytes(_LENGTH, "big"), announced, drawn, *arrays])


def unpacked(sent: bytes) -> Message:
    """The message in such bytes, whose arrays are parts of them."""
    whole = memoryview(sent)
    sizes = [_LENGTH, int.from_bytes(whole[:_LENGTH], "big")]
    said = read_head(bytes(cut(whole, sizes)[1]))
    _, _, drawn, *arrays = cut(whole, [*sizes, said["size"], *said["arrays"]])
    return filled(bytes(drawn), arrays)


class RayCrew:
    """Actors, each with ``cpus`` and ``gpus`` of a machine. ``folder``: the run's, which every machine must see."""

    def __init__(
        self, post: Post, homes: Sequence[SiteHome], folder: Path, *, cpus: int, gpus: float
    ) -> None:
        import ray

        self._ray, self._post = ray, post
        self._kind = ray.remote(num_cpus=cpus, num_gpus=gpus, max_restarts=0)(SiteActor)
        self._place = Place(mark=folder / _MARK, word=secrets.token_hex(8), versions=versions())
        self._place.mark.write_text(self._place.word)
        plain = [SiteHome(site=home.site, folder=home.folder, open=home.open) for home in homes]
        self._homes = ray.put(plain)
        self._actors: dict[int, Any] = {}
        self._futures: dict[int, Future[Any]] = {}
        self._last = 0
        self._shelf: Shelf[Any] = Shelf(
            lambda parts: ray.put(np.frombuffer(joined(parts), np.uint8)), lambda _: None
        )

    def start(self) -> int:
        """Ask for one more; it tells when it is ready."""
        self._last += 1
        actor = self._kind.remote(self._homes, self._place)
        self._actors[self._last] = actor
        self._expect_result(self._last, actor.ready.remote(), self._is_ready)
        return self._last

    def give(self, worker: int, message: Message) -> None:
        """Send an actor a message, and references to its arrays."""
        records = self._shelf.of(message).values()
        sizes = [laid.sizes for laid, _ in records]
        result = self._actors[worker].carry.remote(outline(message), sizes, *(place for _, place in records))
        self._expect_result(worker, result, lambda number, sent: Answered(number, unpacked(sent)))

    def end(self, worker: int) -> None:
        """End it hard."""
        self._futures.pop(worker, None)
        self._ray.kill(self._actors.pop(worker))

    def close(self) -> None:
        """End them all, and wait until Ray has told so of each: what it tells after its end ends the process with an error."""
        awaited = list(self._futures.values())
        for number in list(self._actors):
            self.end(number)
        wait(awaited, _ENDING_SECONDS)
        self._shelf.clear()
        self._place.mark.unlink(missing_ok=True)

    def expect(self, message: Message) -> None:
        """The message will be given to a worker, perhaps more than once."""
        self._shelf.expect(message)

    def release(self, message: Message) -> None:
        """The message will not be given to a worker any more."""
        self._shelf.release(message)

    def _expect_result(self, number: int, result: Any, told: Any) -> None:
        future = result.future()
        self._futures[number] = future
        future.add_done_callback(partial(self._tell, number, told))

    def _tell(self, number: int, told: Any, future: Future[Any]) -> None:
        """In one of Ray's threads: what came of it, of which only the event is kept."""
        self._futures.pop(number, None)
        try:
            self._post(told(number, future.result()))
        except Exception as error:
            self._post(Lost(number, self._words(error)))

    @staticmethod
    def _is_ready(number: int, problem: str) -> Ready | Failed:
        return Failed(WorkerLost(problem)) if problem else Ready(number)

    def _words(self, error: Exception) -> str:
        if isinstance(error, self._ray.exceptions.RayActorError) and not error.actor_init_failed:
            return "was lost with its process or its machine"
        *_, last = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
        return f"failed ({type(error).__name__}: {last})"
