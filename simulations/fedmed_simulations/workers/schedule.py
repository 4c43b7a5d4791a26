"""Which order goes to a worker next, and what becomes of one whose worker is gone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice

from flwr.app import Message

Size = Callable[[int, str], float]
"""What a node has to do for a kind of message, in any unit: steps, or cases."""


@dataclass(slots=True, kw_only=True)
class Order:
    """A message whose reply was not taken yet.

    ``given``: how often it went to a worker. ``began``: when it did last, in seconds; None: it is at none. ``done``: its reply is
    there. ``hurried``: it was taken from a slow worker.
    """

    name: str
    message: Message
    given: int = 0
    began: float | None = None
    done: bool = False
    hurried: bool = False

    @property
    def node(self) -> int:
        """Whom it is for."""
        return self.message.metadata.dst_node_id

    @property
    def kind(self) -> str:
        """What is asked for."""
        return self.message.metadata.message_type


class Schedule:
    """Orders in the roster's order, of which the ``window`` first may be at work or wait as finished replies.

    Among these the longest goes first, by the time that the node took last for its kind; before it took any, by its size, at
    the pace of the nodes that did. The order that is awaited is in the window wherever it stands.
    """

    def __init__(self, window: int, size: Size) -> None:
        self._window, self._size = window, size
        self._orders: dict[str, Order] = {}
        self._took: dict[tuple[int, str], float] = {}
        self._paces: dict[str, tuple[float, float]] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._orders

    def __getitem__(self, name: str) -> Order:
        return self._orders[name]

    def add(self, order: Order) -> None:
        """One more, behind the others."""
        self._orders[order.name] = order

    def remove(self, name: str) -> Order:
        """Its reply was taken, or nobody waits for it."""
        return self._orders.pop(name)

    def next(self, awaited: str) -> Order | None:
        """The order that a worker should begin now. ``awaited``: the one whose reply is wanted first, or ''."""
        window = [*islice(self._orders.values(), self._window)]
        if awaited in self._orders:
            window.append(self._orders[awaited])
        waiting = [order for order in window if order.began is None and not order.done]
        return max(waiting, key=self.expected, default=None)

    def begin(self, order: Order, now: float) -> None:
        """It goes to a worker."""
        order.began, order.given = now, order.given + 1

    def finish(self, order: Order, now: float) -> None:
        """Its reply is there, after so long a time."""
        if order.began is None or order.done:
            return
        took = now - order.began
        order.began, order.done = None, True
        self._took[order.node, order.kind] = took
        seconds, size = self._paces.get(order.kind, (0.0, 0.0))
        self._paces[order.kind] = seconds + took, size + self._size(order.node, order.kind)

    def take_back(self, order: Order) -> None:
        """Its worker is gone: it is to be done again."""
        order.began = None

    def slow(self, times: float, least_seconds: float, now: float) -> Order | None:
        """An order that takes ``times`` as long as expected, and ``least_seconds`` at least; each is named once."""
        for order in self._orders.values():
            if order.began is None or order.hurried or order.kind not in self._paces:
                continue
            if now - order.began > max(times * self.expected(order), least_seconds):
                order.hurried = True
                return order
        return None

    def expected(self, order: Order) -> float:
        """How long it will take: in seconds as soon as an order of its kind was timed, else its size."""
        took = self._took.get((order.node, order.kind))
        if took is not None:
            return took
        seconds, sizes = self._paces.get(order.kind, (1.0, 1.0))
        return self._size(order.node, order.kind) * (seconds / sizes if sizes else 0.0)
