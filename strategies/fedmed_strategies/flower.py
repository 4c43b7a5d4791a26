"""A strategy of Flower's own, as far as sites and the validity table have to know of it. It runs at the server."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from fedmed_strategies.combining import Aggregator

PREFIX = "flwr."
"""What the names of such recipes begin with, as ``flwr.FedAdam``."""

Settings = dict[str, bool | int | float | str | tuple[float, ...] | None]

_ROBUST = {"FedMedian", "FedTrimmedAvg", "Krum", "MultiKrum", "Bulyan"}


class Flower(Aggregator):
    """A class of ``flwr.serverapp.strategy``, which does all of the server's part in a round.

    ``settings``: by class the arguments of its constructor. One that wraps another names it in its argument ``strategy``.
    Sites train as FedAvg's do; a proximal term is the piece ``prox``.
    """

    name = "flower"
    source = "Beutel et al. 2020, 'Flower: a friendly federated learning research framework'"
    sees_each_update = True
    strategy: str
    settings: dict[str, Settings] = Field(default_factory=dict)

    @property
    def robust(self) -> bool:
        """Whether its rule is one against hostile sites."""
        return bool(_ROBUST & set(self.classes))

    @property
    def classes(self) -> tuple[str, ...]:
        """It, what it wraps, and so on."""
        return wrapped(self.strategy, self.settings)

    @property
    def proximal(self) -> float:
        """By how much sites are to be drawn back."""
        given = [self.settings.get(name, {}).get("proximal_mu") for name in self.classes]
        return next((float(mu) for mu in given if isinstance(mu, int | float)), 0.0)


def flower_of(name: str, settings: dict[str, Mapping[str, Any]]) -> Flower:
    """What ``name``, without the prefix, stands for. Its settings are taken out of ``settings``; other pieces' stay."""
    classes = wrapped(name, settings)
    own = {each: dict(settings.pop(each)) for each in classes if each in settings}
    return Flower(strategy=name, settings=own)


def wrapped(name: str, settings: Mapping[str, Mapping[str, Any]]) -> tuple[str, ...]:
    """The class, the one that it wraps by its argument ``strategy``, and so on; each once."""
    classes = [name]
    while True:
        inner = settings.get(classes[-1], {}).get("strategy")
        if not isinstance(inner, str) or inner in classes:
            return tuple(classes)
        classes.append(inner)
