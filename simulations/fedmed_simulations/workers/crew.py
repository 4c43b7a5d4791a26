"""Who carries orders out beside this process: what a crew of workers can be asked, and what it tells."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from flwr.app import ArrayRecord, Message

from fedmed_client.work.frames import array_records

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Ready:
    """A worker can be given its first order."""

    worker: int


@dataclass(frozen=True, slots=True)
class Stepped:
    """A worker has taken a training step."""

    worker: int
    step: int


@dataclass(frozen=True, slots=True)
class Answered:
    """A worker has carried its order out."""

    worker: int
    reply: Message


@dataclass(frozen=True, slots=True)
class Lost:
    """A worker is gone, with the order that it had. ``why``: in words."""

    worker: int
    why: str


@dataclass(frozen=True, slots=True)
class Failed:
    """No worker can do anything, now or later."""

    error: Exception


Event = Ready | Stepped | Answered | Lost | Failed
Post = Callable[[Event], None]
"""Tells an event; may be called from any thread."""


class Crew(Protocol):
    """Workers, each under a number that no other has. Its methods are called by one thread at a time."""

    def start(self) -> int:
        """Start one more; it tells when it is ready."""

    def give(self, worker: int, message: Message) -> None:
        """Have a ready worker carry a message out; what becomes of it is told."""

    def end(self, worker: int) -> None:
        """End it hard, whatever it does. What it still tells is of no interest."""

    def close(self) -> None:
        """End them all."""

    def expect(self, message: Message) -> None:
        """The message will be given to a worker, perhaps more than once."""

    def release(self, message: Message) -> None:
        """The message will not be given to a worker any more."""


@dataclass(slots=True)
class Laid(Generic[T]):
    """The arrays of a record where workers find them: at ``place``, in parts of ``sizes`` bytes. ``uses``: messages with it."""

    number: int
    record: ArrayRecord
    sizes: tuple[int, ...]
    uses: int = 0
    place: T | None = None


class Shelf(Generic[T]):
    """Arrays that messages share, laid out once however many messages hold them, and let go of with the last one.

    ``lay``: puts parts where workers find them; ``drop``: takes them away.
    """

    def __init__(self, lay: Callable[[Sequence[bytes]], T], drop: Callable[[T], None]) -> None:
        self._lay, self._drop = lay, drop
        self._laid: dict[int, Laid[T]] = {}
        self._last = 0

    def expect(self, message: Message) -> None:
        """One message more that holds its arrays."""
        for record in array_records(message).values():
            if id(record) not in self._laid:
                self._last += 1
                sizes = tuple(len(array.data) for array in record.values())
                self._laid[id(record)] = Laid(self._last, record, sizes)
            self._laid[id(record)].uses += 1

    def of(self, message: Message) -> Mapping[str, tuple[Laid[T], T]]:
        """By record of an expected message: its arrays and their place, to which they are brought at the first call."""
        found = {}
        for name, record in array_records(message).items():
            laid = self._laid[id(record)]
            if laid.place is None:
                laid.place = self._lay([array.data for array in record.values()])
            found[name] = laid, laid.place
        return found

    def release(self, message: Message) -> None:
        """One message less."""
        for record in array_records(message).values():
            laid = self._laid[id(record)]
            laid.uses -= 1
            if not laid.uses:
                del self._laid[id(record)]
                if laid.place is not None:
                    self._drop(laid.place)

    def clear(self) -> None:
        """Let go of everything."""
        for laid in self._laid.values():
            if laid.place is not None:
                self._drop(laid.place)
        self._laid.clear()

    def numbers(self) -> list[int]:
        """Of all that is laid out."""
        return [laid.number for laid in self._laid.values() if laid.place is not None]
