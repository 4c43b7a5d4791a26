"""A recipe: a federated strategy as one value, a choice of pieces."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Self, TypeVar

import numpy as np
from pydantic import Field, SerializeAsAny, ValidationError, model_validator

from fedmed_common.config import Experiment, RecipeChoice
from fedmed_common.errors import ConfigError
from fedmed_common.fields import Model
from fedmed_common.loading import as_config_error
from fedmed_common.lookup import find
from fedmed_common.privacy import Spent
from fedmed_strategies.aggregators.mean import Mean
from fedmed_strategies.buffered import Buffered
from fedmed_strategies.central_privacy import CentralPrivacy
from fedmed_strategies.combining import Aggregator, Filter, ServerOptimizer, Weights
from fedmed_strategies.corrections.prox import Prox
from fedmed_strategies.flower import PREFIX, Flower, flower_of
from fedmed_strategies.pieces import Correction, Input, Loss, Personal, Piece, Sampler, Stage
from fedmed_strategies.server_optimizers.momentum import Momentum
from fedmed_strategies.statistics.base import Statistic
from fedmed_strategies.validity import refuse_pieces
from fedmed_strategies.weights.fixed import ByPatients

M = TypeVar("M", bound=Model)


class Recipe(Model):
    """How sites train and how their updates become one model. Without any piece it is FedAvg.

    At a site: ``losses`` recast the task's loss, one after the other; ``sampler`` draws patients; ``inputs`` change images;
    ``corrections`` change steps; ``personal`` stays there. Between: ``statistics``, besides those that other pieces ask for,
    are gathered before training. At the server: ``weights`` weigh updates, ``filters`` look at all of them, ``aggregator``
    combines them, ``central_privacy`` adds noise, ``server_optimizer`` steps, ``stages`` change what is measured. ``buffered``:
    it steps after every few updates, whatever the others do. ``secure``: the server is to see sums of sites only.

    Raises:
        ValidationError: pieces that cannot be combined; the sentence says why.
    """

    losses: tuple[SerializeAsAny[Loss], ...] = ()
    sampler: SerializeAsAny[Sampler] | None = None
    inputs: SerializeAsAny[Input] | None = None
    corrections: tuple[SerializeAsAny[Correction], ...] = ()
    personal: SerializeAsAny[Personal] | None = None
    statistics: tuple[SerializeAsAny[Statistic], ...] = ()
    weights: SerializeAsAny[Weights] = Field(default_factory=ByPatients)
    filters: tuple[SerializeAsAny[Filter], ...] = ()
    aggregator: SerializeAsAny[Aggregator] = Field(default_factory=Mean)
    central_privacy: CentralPrivacy | None = None
    server_optimizer: SerializeAsAny[ServerOptimizer] = Field(default_factory=Momentum)
    stages: tuple[SerializeAsAny[Stage], ...] = ()
    buffered: Buffered | None = None
    secure: bool = False

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        names = [piece.name for piece in self.pieces()]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"'{name}' is in it twice")
        refuse_pieces(self)
        return self

    def pieces(self) -> Iterator[Piece]:
        """All its pieces, in the order of the axes."""
        for axis in type(self).model_fields:
            value = getattr(self, axis)
            if isinstance(value, Piece):
                yield value
            elif isinstance(value, tuple):
                yield from value

    def gathered(self) -> tuple[Statistic, ...]:
        """The statistics that are gathered before training, each once; one that is listed goes before one that is asked for."""
        wanted: dict[str, Statistic] = {statistic.name: statistic for statistic in self.statistics}
        for piece in self.pieces():
            for statistic in piece.statistics:
                assert isinstance(statistic, Statistic)  # noqa: S101
                wanted.setdefault(statistic.name, statistic)
        return tuple(wanted.values())

    def asked(self) -> tuple[Statistic, ...]:
        """All statistics that sites are asked for: before training, and by stages."""
        staged = [stage.statistic for stage in self.stages]
        return (*self.gathered(), *(one for one in staged if isinstance(one, Statistic)))

    def spent(self, experiment: Experiment) -> tuple[Spent, ...]:
        """What its statistics cost each patient of a site over a run, with those that a crash may have asked for twice."""
        rounds = experiment.rounds
        spare = experiment.privacy.spare_rounds if experiment.privacy else 0
        spent = [cost for statistic in self.gathered() for cost in statistic.spent * (1 + spare)]
        for stage in self.stages:
            times = sum(number >= stage.begins(rounds) for number in experiment.evaluation_rounds) + spare
            assert isinstance(stage.statistic, Statistic)  # noqa: S101
            spent += stage.statistic.spent * times
        return tuple(spent)

    def sums_beside(self) -> bool:
        """Whether a site sends arrays beside its update."""
        template = {"x": np.zeros(1, np.float32)}
        return any(piece.sums(template) for piece in self.pieces())

    def scalars(self) -> dict[str, tuple[float, float]]:
        """The numbers that a site sends in the clear with its update, and between what they lie."""
        return {name: bounds for piece in self.pieces() for name, bounds in piece.scalars.items()}

    def __add__(self, other: Recipe) -> Recipe:
        """Both together: what can be several adds up, and what can be one is taken from the one that says something.

        Raises:
            ConfigError: both say something else of the same.
        """
        fields: dict[str, Any] = {}
        for axis, info in type(self).model_fields.items():
            mine, yours = getattr(self, axis), getattr(other, axis)
            if isinstance(mine, tuple):
                fields[axis] = mine + tuple(piece for piece in yours if piece not in mine)
            else:
                default = info.get_default(call_default_factory=True)
                if default not in (mine, yours) and mine != yours:
                    both = " and ".join(f"'{getattr(piece, 'name', piece)}'" for piece in (mine, yours))
                    raise ConfigError(
                        f"{both} are both for its {axis.replace('_', ' ')}, of which there is one",
                        field="recipe.also",
                        fix="leave one of them out",
                    )
                fields[axis] = yours if mine == default else mine
        return _made(Recipe, fields, "recipe.also")

    def with_settings(self, settings: Mapping[str, Mapping[str, Any]]) -> Recipe:
        """The recipe with other settings of pieces that it has, and of the statistics that these ask for, by their names.

        Raises:
            ConfigError: it has no such piece, or the piece no such setting, or it is out of bounds.
        """
        own = {piece.name: piece for piece in self.pieces()}
        asked = {statistic.name: statistic for statistic in self.gathered()}
        staged = {stage.statistic.name: stage.statistic for stage in self.stages}
        changed: dict[str, Piece] = {}
        for name, values in settings.items():
            piece = find({**staged, **asked, **own}, name, field="recipe.settings")
            fields = {**{field: getattr(piece, field) for field in type(piece).model_fields}, **values}
            changed[name] = _made(type(piece), fields, f"recipe.settings.{name}")
        fields = {axis: _replaced(getattr(self, axis), changed) for axis in type(self).model_fields}
        new = tuple(piece for name, piece in changed.items() if name in asked and name not in own)
        fields["statistics"] = (*fields["statistics"], *new)
        return _made(Recipe, fields, "recipe.settings")


def resolve(choice: RecipeChoice, presets: Mapping[str, Recipe], *, secure: bool = False) -> Recipe:
    """The recipe that an experiment asks for: presets added up, and settings of their pieces; ``secure``: in secret.

    A name that begins with ``flwr.`` is that of a strategy of Flower's, which the server looks up.

    Raises:
        ConfigError: names the field and the fix.
    """
    settings: dict[str, Mapping[str, Any]] = dict(choice.settings)
    if choice.name.startswith(PREFIX):
        recipe = _of_flower(flower_of(choice.name.removeprefix(PREFIX), settings))
    else:
        recipe = find(presets, choice.name, field="recipe.name")
    for name in choice.also:
        recipe = recipe + find(presets, name, field="recipe.also")
    recipe = recipe.with_settings(settings)
    return recipe if not secure else _made(Recipe, {**dict(recipe), "secure": True}, "recipe")


def _of_flower(flower: Flower) -> Recipe:
    mu = flower.proximal
    drawn = (_made(Prox, {"mu": mu}, f"recipe.settings.{flower.strategy}"),) if mu else ()
    return Recipe(aggregator=flower, corrections=drawn)


def _replaced(value: Any, changed: Mapping[str, Piece]) -> Any:
    if isinstance(value, tuple):
        return tuple(_replaced(piece, changed) for piece in value)
    if not isinstance(value, Piece):
        return value
    piece = changed.get(value.name, value)
    inner = {field: _replaced(part, changed) for field, part in piece if isinstance(part, Piece)}
    return piece.model_copy(update=inner) if inner else piece


def _made(kind: type[M], fields: Mapping[str, Any], field: str) -> M:
    try:
        return kind(**fields)
    except ValidationError as error:
        wrong = as_config_error(kind, error, "")
        place = f"{field}.{wrong.field}" if wrong.field else field
        raise ConfigError(wrong.problem, field=place, fix=wrong.fix) from None
