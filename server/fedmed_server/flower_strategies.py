"""Flower's own strategies in our rounds: built from an experiment's settings, played for a round, and kept between rounds."""

from __future__ import annotations

import gc
import inspect
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, get_type_hints

import numpy as np

from fedmed_common.errors import ConfigError, QuorumError
from fedmed_common.lookup import find
from fedmed_common.params import is_statistic
from fedmed_strategies.aggregators.robust import Together
from fedmed_strategies.combining import Gathering, MeanGathering, Weighed
from fedmed_strategies.corrections.prox import Prox
from fedmed_strategies.flower import PREFIX, Flower
from fedmed_strategies.pieces import Answer, Arrays, Memory, Scene
from fedmed_strategies.recipe import Recipe

if TYPE_CHECKING:
    from flwr.app import Message
    from flwr.serverapp.strategy import Strategy

_TREES = "it combines trees of XGBoost, and the sites of fedmed train networks"
_AT_CLIENTS = (
    "its updates are clipped by a modifier of Flower's clients, which the sites of fedmed do not have"
)
_REFUSED = {
    "FedXgbBagging": _TREES,
    "FedXgbCyclic": _TREES,
    "DifferentialPrivacyClientSideFixedClipping": _AT_CLIENTS,
    "DifferentialPrivacyClientSideAdaptiveClipping": _AT_CLIENTS,
}
_SET_HERE = {"min_train_nodes": 1, "min_evaluate_nodes": 1, "min_available_nodes": 1}
_NUMBERS = {int: (int,), float: (int, float), bool: (bool,), float | None: (int, float)}
_OURS = ("fraction_", "min_")
_SENT_ANEW = "current_arrays"
_PROXIMAL, _ROUND = "proximal-mu", "server-round"


def check(recipe: Recipe) -> None:
    """Whether the recipe's strategy of Flower's, where it has one, can be built as the experiment asks.

    Raises:
        ConfigError: no such strategy, or none that can work here, or settings that its constructor does not take.
    """
    if isinstance(recipe.aggregator, Flower):
        _built(recipe.aggregator)


@dataclass
class FlowerRound:
    """One round of a strategy of Flower's, in the place of :class:`~fedmed_strategies.server_half.Round`.

    The strategy is made anew for each round, and given back what it kept, so that a run that was killed goes on as if it had not
    been. Running statistics of batch norms do not pass through it, whose step could make a variance negative: they are averaged
    by patients, and where the strategy is robust their median is taken.

    Raises:
        ConfigError: as :func:`check`; or the strategy asks the sites for something that they do not do.
    """

    recipe: Recipe
    scene: Scene
    parameters: Arrays
    memory: Memory
    _replies: list[Message] = field(default_factory=list)
    _losses: list[float | None] = field(default_factory=list)
    _patients: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        from flwr.app import ConfigRecord

        assert isinstance(self.recipe.aggregator, Flower)  # noqa: S101
        self._piece = self.recipe.aggregator
        self._strategy = _built(self._piece)
        _restore(self._strategy, self.memory)
        statistics = {name: array for name, array in self.parameters.items() if is_statistic(name)}
        self._learned = [name for name in self.parameters if name not in statistics]
        robust = self._piece.robust
        self._statistics: Gathering = (
            Together(lambda _updates, _parts: {}) if robust else MeanGathering(statistics)
        )
        config = ConfigRecord()
        start = _record({name: self.parameters[name] for name in self._learned})
        nodes: Any = SimpleNamespace(get_node_ids=lambda: range(1, len(self.scene.sites) + 1))
        with _quietly():
            orders = list(self._strategy.configure_train(self.scene.round, start, config, nodes))
        self._orders = {order.metadata.dst_node_id: order for order in orders}
        self._check_asked(dict(config))

    def add(self, answer: Answer) -> None:
        """Add one answer, as a reply of the site with its new arrays."""
        from flwr.app import Message, RecordDict

        new = {
            name: np.add(self.parameters[name], answer.delta[name], dtype=np.float32)
            for name in self._learned
        }
        node = 1 + [site.name for site in self.scene.sites].index(answer.site.name)
        self._replies.append(Message(RecordDict({"arrays": _record(new)}), reply_to=self._orders[node]))
        self._losses.append(answer.loss)
        measured = {name: array for name, array in answer.delta.items() if is_statistic(name)}
        self._statistics.add(Weighed(delta=measured, weight=float(answer.site.patients), site=answer.site))
        self._patients.append(answer.site.patients)

    def finish(self) -> tuple[Arrays, Memory]:
        """The new parameters, and what the strategy keeps.

        Raises:
            QuorumError: the strategy made nothing of the answers.
        """
        from flwr.app import MetricRecord
        from flwr.serverapp.exception import AggregationError

        known = all(loss is not None for loss in self._losses)
        for reply, patients, loss in zip(self._replies, self._patients, self._losses, strict=True):
            told: dict[str, Any] = {"num-examples": patients} | ({"train_loss": loss} if known else {})
            reply.content["metrics"] = MetricRecord(told)
        name = PREFIX + self._piece.strategy
        try:
            with _quietly(), _numpy_from_entropy():
                arrays, _ = self._strategy.aggregate_train(self.scene.round, self._replies)
        except AggregationError as error:
            raise QuorumError(f"'{name}' could not combine the answers: {error}") from error
        if arrays is None:
            raise QuorumError(
                f"'{name}' made nothing of {len(self._replies)} answers\n  fix: see to the sites that did not answer"
            )
        moved = {key: np.array(array.numpy(), np.float32) for key, array in arrays.items()}
        measured = self._statistics.result(float(sum(self._patients)))
        moved |= {key: np.add(self.parameters[key], array) for key, array in measured.items()}
        kept = {key: array for key, array in self.memory.items() if not key.startswith(f"{Flower.name}/")}
        new = {key: moved[key] for key in self.parameters}
        return new, kept | _kept(self._strategy, _built(self._piece))

    def _check_asked(self, config: dict[str, Any]) -> None:
        mu = next((piece.mu for piece in self.recipe.corrections if isinstance(piece, Prox)), 0.0)
        asked = {key: value for key, value in config.items() if key != _ROUND}
        if asked.pop(_PROXIMAL, mu) != mu:
            raise ConfigError(
                f"'{PREFIX}{self._piece.strategy}' draws sites back by {config[_PROXIMAL]}, and 'prox' by {mu}",
                field="recipe.settings.prox.mu",
                fix=f"leave it out: recipe.settings.{self._piece.strategy}.proximal_mu says it",
            )
        if asked:
            raise ConfigError(
                f"'{PREFIX}{self._piece.strategy}' asks sites for {sorted(asked)}, which they do not know",
                field="recipe.name",
                fix="use a recipe of fedmed's",
            )


@contextmanager
def _numpy_from_entropy() -> Iterator[None]:
    """numpy's global generator, from which Flower draws noise, in a state that only chance knows; the former one afterwards."""
    before = np.random.get_state()
    np.random.set_state(("MT19937", np.frombuffer(os.urandom(4 * 624), np.uint32), 624, 0, 0.0))
    try:
        yield
    finally:
        np.random.set_state(before)


@contextmanager
def _quietly() -> Iterator[None]:
    """Without Flower's account of each round, which the history gives, and without what was there before in its searches for
    garbage, of which some strategies make one for each array."""
    log = logging.getLogger("flwr")
    before = log.level
    log.setLevel(logging.ERROR)
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
        log.setLevel(before)


def _record(arrays: Arrays) -> Any:
    from flwr.app import Array, ArrayRecord

    return ArrayRecord({name: Array(array) for name, array in arrays.items()})


def _built(piece: Flower) -> Strategy:
    """The strategy, around those that it wraps."""
    made: Strategy | None = None
    for name in reversed(piece.classes):
        made = _made(name, piece, made)
    assert made is not None  # noqa: S101
    return made


def _made(name: str, piece: Flower, inner: Strategy | None) -> Strategy:
    from flwr.serverapp import strategy

    kinds = {each: getattr(strategy, each) for each in strategy.__all__ if each not in {"Result", "Strategy"}}
    place = "recipe.name" if name == piece.strategy else "recipe.settings"
    kind: Any = find(kinds, name, field=place)
    if name in _REFUSED:
        raise ConfigError(
            f"'{PREFIX}{name}' cannot work here: {_REFUSED[name]}",
            field=place,
            fix="use a recipe of fedmed's",
        )
    arguments = _arguments(name, kind, dict(piece.settings.get(name, {})), inner)
    try:
        with _quietly():
            built: Strategy = kind(**arguments)
    except ValueError as error:
        raise ConfigError(str(error), field=f"recipe.settings.{name}", fix="change its settings") from error
    return built


def _arguments(name: str, kind: Any, given: dict[str, Any], inner: Strategy | None) -> dict[str, Any]:
    """What the constructor is called with: numbers of the experiment, what it wraps, and what is not the experiment's to say."""
    place = f"recipe.settings.{name}"
    signature = inspect.signature(kind).parameters
    hints = get_type_hints(kind.__init__)
    free = {key for key in signature if hints.get(key) in _NUMBERS and not key.startswith(_OURS)}
    free |= {"strategy"} & set(signature)
    for key, value in given.items():
        if key in signature and key not in free:
            raise ConfigError(
                f"'{key}' is not the experiment's to say: fedmed draws sites, and packs what they send",
                field=f"{place}.{key}",
                fix="leave it out; [federation] says who trains",
            )
        find(dict.fromkeys(free), key, field=place)
        wanted = _NUMBERS.get(hints[key], (str,))
        if not isinstance(value, wanted) or (isinstance(value, bool) and bool not in wanted):
            raise ConfigError(
                f"{value!r} is no {wanted[-1].__name__}", field=f"{place}.{key}", fix="change its type"
            )
    if "strategy" in free:
        given["strategy"] = inner
    needed = [key for key in free if signature[key].default is inspect.Parameter.empty]
    for key in sorted(needed):
        if given.get(key) is None:
            raise ConfigError(
                f"'{PREFIX}{name}' needs '{key}'", field=f"{place}.{key}", fix=f"set {place}.{key}"
            )
    return given | {key: value for key, value in _SET_HERE.items() if key in signature}


def _levels(strategy: Strategy) -> Iterator[tuple[str, Strategy]]:
    """The strategy and those that it wraps, and where."""
    place, here = "", strategy
    while True:
        yield place, here
        if not hasattr(here, "strategy"):
            return
        place, here = f"{place}strategy.", here.strategy


def _kept(strategy: Strategy, fresh: Strategy) -> Memory:
    """What the strategy has that a new one has not: arrays, alone, listed or named, and numbers that changed."""
    from flwr.app import ArrayRecord

    kept: Memory = {}
    for (place, one), (_, other) in zip(_levels(strategy), _levels(fresh), strict=True):
        for name, value in vars(one).items():
            key = f"{Flower.name}/{place}{name}"
            if name == _SENT_ANEW:
                continue
            if isinstance(value, ArrayRecord):
                kept |= {f"{key}:record/{each}": array.numpy() for each, array in value.items()}
            elif isinstance(value, np.ndarray):
                kept[f"{key}:array/"] = value
            elif isinstance(value, dict):
                kept |= {f"{key}:dict/{each}": array for each, array in value.items()}
            elif isinstance(value, list):
                kept |= {f"{key}:list/{each:08d}": array for each, array in enumerate(value)}
            elif type(value) in {int, float} and value != getattr(other, name):
                kept[f"{key}:{type(value).__name__}/"] = np.array(value)
    return {key: np.array(value, order="C") for key, value in kept.items()}


def _restore(strategy: Strategy, memory: Memory) -> None:
    """Give a new strategy what the one of the round before kept."""
    found: dict[tuple[str, str], Memory] = {}
    for key in sorted(memory):
        start, _, rest = key.partition("/")
        if start == Flower.name:
            head, _, each = rest.partition("/")
            place, _, kind = head.rpartition(":")
            found.setdefault((place, kind), {})[each] = memory[key]
    levels = dict(_levels(strategy))
    for (place, kind), arrays in found.items():
        level, _, name = place.rpartition(".")
        setattr(levels[f"{level}." if level else ""], name, _value(kind, arrays))


def _value(kind: str, arrays: Memory) -> Any:
    if kind == "dict":
        return dict(arrays)
    if kind == "record":
        return _record(arrays)
    if kind == "list":
        return list(arrays.values())
    (one,) = arrays.values()
    return one if kind == "array" else one.item()
