"""What a run has to do with its network: who is on it, and how to wait for it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar, runtime_checkable

from flwr.app import ArrayRecord
from flwr.serverapp import Grid

from fedmed_common import wire
from fedmed_common.config import Experiment
from fedmed_common.errors import Interrupted, TransportAway, TransportLost
from fedmed_common.params import Parameters
from fedmed_server.history import SiteFacts
from fedmed_server.receipts import Receipts
from fedmed_strategies.pieces import Layers, Site

if TYPE_CHECKING:
    from torch.nn import Module

T = TypeVar("T")


def never(_site: str) -> bool:
    """No site is revoked, as in a simulation."""
    return False


@runtime_checkable
class Guarded(Protocol):
    """A grid that bounds replies before it reads them, can say what has come without reading it, and sends large arrays from
    files."""

    def set_limit(self, size: int, arrays: int) -> None:
        """From now on a reply holds at most so many bytes in so many arrays."""

    def shelve(self, record: ArrayRecord) -> ArrayRecord:
        """The record as it is sent best to many sites: its large arrays lie in files."""

    def arrived(self, message_ids: Collection[str]) -> dict[str, bool]:
        """The messages that are answered, and whether the answer holds arrays."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One site of the run's roster. ``site``: as a recipe's pieces see it, made once, as a roster may be long."""

    node: int
    facts: SiteFacts
    site: Site = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        facts = self.facts
        site = Site(name=facts.name, patients=facts.patients.get("train", 0), presence=facts.presence)
        object.__setattr__(self, "site", site)

    @property
    def name(self) -> str:
        """The site's name."""
        return self.facts.name


@dataclass(frozen=True, slots=True, kw_only=True)
class Channel:
    """What every exchange of a run needs.

    ``watch(site, phase)`` is told who is asked and who has answered; ``stop`` ends the run. ``expected``: the registered names
    of the sites that the run was launched with; None in a simulation, whose sites say their names themselves.
    ``is_revoked(site)``: the consortium has shut it out, so that nothing is asked of it, taken from it or waited for.
    ``trained``: names of the arrays that a site's update holds; None: all. ``layers``, ``model``: what is known of the network,
    and one of its kind, whose own values do not matter. ``evaluated``: the rounds after which the model is measured; None: as the
    experiment says. ``receipts``: of the sites' privacy ledgers. ``has``: by site, the name of the model that it has
    (``agreement``). ``folder``: the run's. ``regional``: its sites are regions, which answer for sites."""

    grid: Grid
    experiment: Experiment
    run: str
    watch: Callable[[str, str], None]
    stop: threading.Event
    expected: tuple[str, ...] | None = None
    is_revoked: Callable[[str], bool] = never
    poll_seconds: float = 0.05
    trained: tuple[str, ...] | None = None
    layers: Layers | None = None
    model: Module | None = None
    evaluated: frozenset[int] | None = None
    receipts: Receipts = field(default_factory=Receipts)
    has: dict[str, str] = field(default_factory=dict)
    folder: Path | None = None
    regional: bool = False

    def evaluates(self, number: int) -> bool:
        """Whether the model is measured after the round."""
        return number in (self.experiment.evaluation_rounds if self.evaluated is None else self.evaluated)

    def order(self, kind: wire.Kind, number: int) -> wire.Order:
        """An order of round ``number``."""
        return wire.Order(
            kind=kind, run=self.run, round=number, attempt=0, experiment=self.experiment.order_text()
        )

    def updated(self, parameters: Parameters) -> Parameters:
        """The part of the parameters that an update changes, in their order."""
        if self.trained is None:
            return parameters
        return {name: parameters[name] for name in self.trained}

    def check_stop(self) -> None:
        """Raises :class:`Interrupted` when the run is to stop."""
        if self.stop.is_set():
            raise Interrupted("stopped on request")

    def pause(self, least_seconds: float = 0.0) -> None:
        """Wait for the next look at the network."""
        self.check_stop()
        self.stop.wait(max(self.poll_seconds, least_seconds))

    def through(self, call: Callable[[], T], end: float) -> T:
        """What the call gives, tried until ``end`` while the network is away.

        Raises:
            TransportLost: it stayed away.
        """
        while True:
            self.check_stop()
            try:
                return call()
            except TransportAway as away:
                if time.monotonic() > end:
                    raise TransportLost(str(away)) from None
            self.pause()
