"""The model that all sites have alike, and what changed since the one before it: ``compression.down``.

A round's change is encoded once, at its end, and the new global model is the one before with the change as it is read. So
sites that are sent all of it and sites that are sent the change alone have the same numbers, and so has whoever is published
a model. What the codec left out is kept and added to the next round's change.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from flwr.app import ArrayRecord
from numpy.typing import NDArray

from fedmed_common import wire
from fedmed_common.codecs import Encoded, added, change_codec, encoded
from fedmed_common.config import Experiment
from fedmed_common.params import Parameters
from fedmed_common.wire_arrays import packed, shelved


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreed:
    """``name``: of the model, drawn at random, so that a round that is done again after a crash has another. ``base``: the name
    of the model before it, to which ``change`` is what was encoded; both are empty of the first."""

    name: str
    base: str = ""
    change: Encoded = field(default_factory=dict, repr=False)


def first(experiment: Experiment) -> Agreed | None:
    """The model that a run begins with; None where all of each model is sent."""
    return None if change_codec(experiment) is None else Agreed(name=_new_name())


def agree(
    experiment: Experiment,
    before: Parameters,
    changed: Parameters,
    memory: Mapping[str, NDArray[Any]],
    last: Agreed | None,
) -> tuple[Parameters, Agreed | None, dict[str, NDArray[Any]]]:
    """The new parameters among those of ``before``, how they are sent, and what is kept for the next round.

    ``changed``: what the round made of the arrays that are trained.
    """
    codec = change_codec(experiment)
    if codec is None:
        return {**before, **shelved(changed)}, None, {}
    change = {name: array - before[name] for name, array in changed.items()}
    sent, left = encoded(codec, change, memory)
    new = {**before, **shelved(added(before, codec.decode(sent, change)))}
    agreed = Agreed(name=_new_name(), base="" if last is None else last.name, change=sent)
    return new, agreed, left


def _new_name() -> str:
    return secrets.token_hex(16)


class Sending:
    """A model on its way to many sites. ``has``: by site, the name of the model that it has answered an order with. ``pack``:
    how arrays are made ready to be sent to all."""

    def __init__(
        self,
        parameters: Parameters,
        agreed: Agreed | None,
        has: dict[str, str],
        pack: Callable[[Mapping[str, NDArray[Any]]], ArrayRecord] = packed,
    ) -> None:
        self._parameters, self._agreed, self._has, self._pack = parameters, agreed, has, pack
        self._whole: ArrayRecord | None = None
        self._change: ArrayRecord | None = None

    def to(self, site: str) -> tuple[str, str, ArrayRecord | None]:
        """The names of the model and of its base, as an order tells them, and the arrays that go with it."""
        agreed = self._agreed
        if agreed is not None and self._has.get(site) == agreed.name:
            return agreed.name, agreed.name, None
        if agreed is not None and agreed.base and self._has.get(site) == agreed.base:
            self._change = self._change or self._pack(agreed.change)
            return agreed.name, agreed.base, self._change
        if self._whole is None and self._parameters:
            self._whole = self._pack(self._parameters)
        return agreed.name if agreed is not None else "", "", self._whole

    def forget(self) -> None:
        """Let go of what was packed: it is packed again where it is to be sent again."""
        self._whole = self._change = None

    def answered(self, site: str, reply: wire.Reply) -> None:
        """Note what the site has, by its answer."""
        if reply.rule == wire.NO_BASE:
            self._has.pop(site, None)
        elif not reply.code and self._agreed is not None:
            self._has[site] = self._agreed.name
