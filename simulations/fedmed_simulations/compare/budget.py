"""The rows of the table: the candidates, and the baselines that are always there. One budget for all, and the same steps."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from importlib import import_module
from pathlib import Path
from typing import Any

from fedmed_common.config import Experiment, RecipeChoice
from fedmed_common.errors import ConfigError
from fedmed_common.loading import validate
from fedmed_simulations.compare.plan import LAST, Competitor, Configuration, last_rounds
from fedmed_simulations.compare.settings import (
    FEDAVG,
    LIKE,
    LOCAL,
    POOLED,
    Candidate,
    Comparison,
    changed,
    check_groups,
)
from fedmed_strategies.presets import recipe_of

_SAME = (
    "name", "seed", "task.name", "task.classes", "task.labels", "task.dimensions", "task.surface_metrics",
    "data.channels", "data.spacing_mm", "data.crop_to_foreground", "data.splits", "federation", "simulation",
    "train.epochs",
)  # fmt: skip
"""What decides on whom and how is measured, and how much is trained: no candidate may change it."""


def competitors(comparison: Comparison, base: Experiment, file: Path) -> tuple[Competitor, ...]:
    """All rows of the table, with equal budgets.

    A budget is a number of different configurations. It is the same for all: that of the largest grid. Whose grid is smaller
    also tries configurations of the comparison's own ``[grid]``, from its beginning, that are not among its own.

    Raises:
        ConfigError: a field, class or name is unknown, a candidate changes what must be the same, or ``[grid]`` cannot fill a
            smaller grid.
    """
    check_groups(comparison, base.task.classes, file)
    rows = _rows(comparison, base, file)
    budget = max(len(row.own) for row in rows)
    found = tuple(row.competitor(budget) for row in rows)
    for competitor in found:
        _check_same(competitor, found[0].configurations[0].experiment, file)
    names = [competitor.name for competitor in found]
    if comparison.reference not in names:
        near = difflib.get_close_matches(comparison.reference, names, n=1)
        fix = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(names)}"
        raise ConfigError(f"unknown name '{comparison.reference}'", file=file, field="reference", fix=fix)
    return found


def plain_of(recipe: RecipeChoice) -> RecipeChoice:
    """FedAvg with the loss terms and the sampler of ``recipe``, as the strategies know it; where they do not say, FedAvg."""
    known = getattr(import_module("fedmed_strategies.presets"), "plain_of", None)
    choice: RecipeChoice = RecipeChoice() if known is None else known(recipe)
    return choice


def place_of(competitor: Competitor) -> str:
    """Where the comparison file says what the competitor is."""
    if competitor.name in {FEDAVG, POOLED, LOCAL}:
        return "grid"
    return f"candidates.{competitor.name.removeprefix(LIKE)}"


def _rows(comparison: Comparison, base: Experiment, file: Path) -> list[_Row]:
    """The baselines, the candidates, and FedAvg like each candidate where no row is that already."""
    fedavg, plain = (
        {"recipe": choice.model_dump(mode="json")} for choice in (RecipeChoice(), plain_of(base.recipe))
    )
    asked = [
        Candidate(name=FEDAVG, changes=fedavg),
        Candidate(name=POOLED, kind="pooled", changes=plain),
        Candidate(name=LOCAL, kind="local", changes=plain),
        *comparison.candidates,
    ]
    rows = [_row(candidate, comparison, base, file) for candidate in asked]
    for candidate in comparison.candidates:
        if candidate.kind == "federation":
            like = _row(candidate, comparison, base, file, like=True)
            if not any(row.is_also(like) for row in rows):
                rows.append(like)
    return rows


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    """A row before it is known how much each may try. ``own``: of its grid; ``more``: what can be added."""

    candidate: Candidate
    name: str
    own: tuple[Configuration, ...]
    more: tuple[Configuration, ...]
    file: Path

    def competitor(self, budget: int) -> Competitor:
        """With as many configurations as the budget says.

        Raises:
            ConfigError: there are not so many.
        """
        every = _distinct([*self.own, *self.more])[:budget]
        if len(every) < budget:
            raise ConfigError(
                f"'{self.name}' has {len(every)} configurations to try, others {budget}: the budgets must be equal",
                file=self.file,
                field="grid",
                fix=f"give [grid] values that make {budget} configurations, or make the larger grids smaller",
            )
        return Competitor(
            name=self.name, kind=self.candidate.kind, configurations=every, filled=budget - len(self.own)
        )

    def is_also(self, like: _Row) -> bool:
        """Whether this row is a plain FedAvg as well, and tries all that the other one tries."""
        experiments = [one.experiment for one in self.own]
        return (
            self.candidate.kind == "federation"
            and all(plain_of(one.recipe) == one.recipe for one in experiments)
            and {one.experiment.model_dump_json() for one in like.own}
            <= {one.model_dump_json() for one in experiments}
        )


def _row(
    candidate: Candidate, comparison: Comparison, base: Experiment, file: Path, *, like: bool = False
) -> _Row:
    """``like``: FedAvg with the candidate's loss and sampler."""
    document = base.model_dump(mode="json", exclude_unset=True)
    for field, value in candidate.changes.items():
        document = changed(document, field, value)
    place = f"candidates.{candidate.name}" if candidate in comparison.candidates else "grid"

    def configurations(grid: Mapping[str, Sequence[Any]]) -> tuple[Configuration, ...]:
        combinations = (dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values()))
        made = (_configuration(document, settings, file, place) for settings in combinations)
        return _distinct(map(_plain, made) if like else made)

    return _Row(
        candidate=candidate,
        name=LIKE + candidate.name if like else candidate.name,
        own=configurations(candidate.grid or comparison.grid),
        more=configurations(comparison.grid),
        file=file,
    )


def _configuration(
    document: dict[str, Any], settings: dict[str, Any], file: Path, place: str
) -> Configuration:
    chosen = reduce(lambda table, item: changed(table, *item), settings.items(), document)
    try:
        return Configuration(settings=settings, experiment=validate(Experiment, chosen, file))
    except ConfigError as error:
        field = ".".join(part for part in (place, error.field) if part)
        raise ConfigError(error.problem, file=file, field=field, fix=error.fix) from None


def _plain(configuration: Configuration) -> Configuration:
    """The same as FedAvg, with those of its settings that still say something."""
    recipe = plain_of(configuration.experiment.recipe)
    kept = {"recipe": recipe.model_dump(mode="json")}
    return Configuration(
        settings={
            field: value
            for field, value in configuration.settings.items()
            if not field.startswith("recipe.") or changed(kept, field, value) == kept
        },
        experiment=configuration.experiment.model_copy(update={"recipe": recipe}),
    )


def _distinct(configurations: Iterable[Configuration]) -> tuple[Configuration, ...]:
    """Of several that are the same experiment the first."""
    found: dict[str, Configuration] = {}
    for configuration in configurations:
        found.setdefault(configuration.experiment.model_dump_json(), configuration)
    return tuple(found.values())


def _check_same(competitor: Competitor, first: Experiment, file: Path) -> None:
    """Refuse what would not be a comparison.

    Raises:
        ConfigError: names the competitor and the field.
    """
    place = place_of(competitor)
    for configuration in competitor.configurations:
        wrong = _unlike(configuration.experiment, first)
        if wrong is not None:
            problem, fix = wrong
            if configuration.settings:
                problem = f"with {configuration.text}: {problem}"
            raise ConfigError(problem, file=file, field=place, fix=fix)


def _stages_begin(experiment: Experiment) -> list[int]:
    """The rounds from which on its recipe's stages are applied; that a recipe is wrong is said elsewhere."""
    try:
        return [stage.begins(experiment.rounds) for stage in recipe_of(experiment).stages]
    except ConfigError:
        return []


def _is_buffered(experiment: Experiment) -> bool:
    try:
        return recipe_of(experiment).buffered is not None
    except ConfigError:
        return False


def _unlike(experiment: Experiment, first: Experiment) -> tuple[str, str] | None:
    """What keeps two experiments from being compared, and the fix."""
    if _is_buffered(experiment):
        return (
            "with a buffer a round is a step with the updates of some of the sites, so that the same rounds are less work",
            "leave 'fedbuff' out; docs/strategies.md has a comparison by time",
        )
    for field in _SAME:
        if _at(experiment, field) != _at(first, field):
            return f"'{field}' is not that of the others", "leave it as the experiment has it"
    if _samples(experiment) != _samples(first):
        return (
            f"rounds x steps x batch is {_product(experiment)}, of the others {_product(first)}",
            "give rounds, train.steps and train.batch_size the same product everywhere",
        )
    evaluated = len(last_rounds(experiment))
    if evaluated < LAST:
        return (
            f"{experiment.rounds} rounds are evaluated {evaluated} times; what counts is the mean of the last {LAST}",
            "more rounds, or a smaller federation.evaluate_every",
        )
    begins = _stages_begin(experiment)
    if begins and last_rounds(experiment)[0] < max(begins):
        return (
            f"its stages begin after round {max(begins)}, and what counts begins with round {last_rounds(experiment)[0]}",
            "a smaller federation.evaluate_every, or an earlier from_share of the stage",
        )
    return None


def _at(experiment: Experiment, field: str) -> Any:
    return reduce(getattr, field.split("."), experiment)


def _samples(experiment: Experiment) -> int:
    return experiment.rounds * experiment.train.steps * experiment.train.batch_size


def _product(experiment: Experiment) -> str:
    return f"{experiment.rounds} x {experiment.train.steps} x {experiment.train.batch_size}"
