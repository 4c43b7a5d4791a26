"""Who is compared, with what each may try: the candidates, the baselines that are always there, and one budget for all."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from importlib import import_module
from pathlib import Path
from typing import Any

from fedmed_common.config import Experiment, RecipeChoice
from fedmed_common.errors import ConfigError
from fedmed_common.loading import validate
from fedmed_simulations.compare.settings import (
    FEDAVG,
    LIKE,
    LOCAL,
    POOLED,
    Candidate,
    Comparison,
    Kind,
    changed,
)

LAST = 5
"""The estimator: the mean of so many evaluation rounds, the last ones. It is no setting, so that nobody picks it afterwards."""

_SAME = (
    "name", "seed", "task.name", "task.classes", "task.labels", "task.dimensions", "task.surface_metrics",
    "data.channels", "data.spacing_mm", "data.crop_to_foreground", "data.splits", "federation", "simulation",
)  # fmt: skip
"""What decides on whom and how is measured, and how much is trained: no candidate may change it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """One experiment that a competitor may try; ``settings``: what its grid chose, by field."""

    settings: Mapping[str, Any]
    experiment: Experiment

    @property
    def text(self) -> str:
        """The settings for people."""
        return ", ".join(f"{field} = {value}" for field, value in self.settings.items()) or "as it is"


@dataclass(frozen=True, slots=True, kw_only=True)
class Competitor:
    """A row of the table. ``filled``: how many of its configurations come from the comparison's own grid."""

    name: str
    kind: Kind
    configurations: tuple[Configuration, ...]
    filled: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """What is trained, and tuned, on its own: a competitor, or one site of one that trains at each site alone.

    ``baseline``: as in ``runfolder.Plan``.
    """

    competitor: Competitor
    baseline: str = ""

    @property
    def label(self) -> str:
        """Its name in the choices."""
        site = self.baseline.removeprefix("local:") if self.baseline.startswith("local:") else ""
        return f"{self.competitor.name} at {site}" if site else self.competitor.name

    def experiment(self, configuration: Configuration, seed: int, times: int = 1) -> Experiment:
        """What it trains under a seed. A baseline has one trainer; pooled training may take ``times`` as many steps."""
        experiment = configuration.experiment.model_copy(update={"seed": seed})
        if not self.baseline:
            return experiment
        changes: dict[str, Any] = {
            "federation": experiment.federation.model_copy(update={"minimum_sites": 1})
        }
        if self.baseline == POOLED:
            changes["train"] = experiment.train.model_copy(update={"steps": experiment.train.steps * times})
        return experiment.model_copy(update=changes)


def competitors(comparison: Comparison, base: Experiment, file: Path) -> tuple[Competitor, ...]:
    """All rows of the table, with equal budgets.

    A budget is a number of different configurations. It is the same for all: that of the largest grid. Whose grid is smaller
    also tries configurations of the comparison's own ``[grid]``, from its beginning, that are not among its own.

    Raises:
        ConfigError: a field is unknown, a candidate changes what must be the same, or ``[grid]`` cannot fill a smaller grid.
    """
    maker = _Maker(comparison=comparison, base=base, file=file)
    plain = {"recipe": plain_of(base.recipe).model_dump(mode="json")}
    fedavg = Candidate(
        name=FEDAVG, changes={"recipe": RecipeChoice().model_dump(mode="json")}, grid=comparison.grid
    )
    asked = [
        fedavg,
        Candidate(name=POOLED, kind="pooled", changes=plain, grid=comparison.grid),
        Candidate(name=LOCAL, kind="local", changes=plain, grid=comparison.grid),
        *comparison.candidates,
    ]
    makers = [(candidate, False) for candidate in asked]
    makers += [(candidate, True) for candidate in comparison.candidates if candidate.kind == "federation"]
    found: list[tuple[Competitor, Candidate, bool]] = []
    for candidate, like in makers:
        competitor = maker.own(candidate, like=like)
        if not (like and _is_there(competitor, [one for one, _, _ in found])):
            found.append((competitor, candidate, like))
    budget = max(len(competitor.configurations) for competitor, _, _ in found)
    filled = tuple(maker.fill(*one, budget) for one in found)
    _check_same(filled, file)
    names = [competitor.name for competitor in filled]
    if comparison.reference not in names:
        near = difflib.get_close_matches(comparison.reference, names, n=1)
        fix = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(names)}"
        raise ConfigError(f"unknown name '{comparison.reference}'", file=file, field="reference", fix=fix)
    return filled


def arms(competitor: Competitor, sites: Iterable[str]) -> tuple[Arm, ...]:
    """What of a competitor is trained on its own."""
    if competitor.kind == "local":
        return tuple(Arm(competitor=competitor, baseline=f"local:{site}") for site in sites)
    return (Arm(competitor=competitor, baseline=POOLED if competitor.kind == "pooled" else ""),)


def last_rounds(experiment: Experiment) -> tuple[int, ...]:
    """The last evaluation rounds, whose mean is what counts."""
    every = experiment.federation.evaluate_every
    due = [
        number
        for number in range(1, experiment.rounds + 1)
        if number % every == 0 or number == experiment.rounds
    ]
    return tuple(due[-LAST:])


def plain_of(recipe: RecipeChoice) -> RecipeChoice:
    """FedAvg with the loss terms and the sampler of ``recipe``, as the strategies know it; where they do not say, FedAvg."""
    known = getattr(import_module("fedmed_strategies.presets"), "plain_of", None)
    choice: RecipeChoice = RecipeChoice() if known is None else known(recipe)
    return choice


@dataclass(frozen=True, slots=True, kw_only=True)
class _Maker:
    """Makes configurations out of candidates."""

    comparison: Comparison
    base: Experiment
    file: Path

    def own(self, candidate: Candidate, *, like: bool) -> Competitor:
        """With its own grid, or that of all. ``like``: FedAvg with the candidate's loss and sampler."""
        name = LIKE + candidate.name if like else candidate.name
        grid = candidate.grid or self.comparison.grid
        configurations = _distinct(self._configurations(candidate, grid, like=like))
        return Competitor(name=name, kind=candidate.kind, configurations=configurations)

    def fill(self, competitor: Competitor, candidate: Candidate, like: bool, budget: int) -> Competitor:
        """With as many configurations as the budget allows."""
        own = competitor.configurations
        if len(own) == budget:
            return competitor
        more = self._configurations(candidate, self.comparison.grid, like=like)
        every = _distinct([*own, *more])[:budget]
        if len(every) < budget:
            raise ConfigError(
                f"'{competitor.name}' has {len(every)} configurations to try, others {budget}: the budgets must be equal",
                file=self.file,
                field="grid",
                fix=f"give [grid] values that make {budget} configurations, or make the larger grids smaller",
            )
        return replace(competitor, configurations=every, filled=budget - len(own))

    def _configurations(
        self, candidate: Candidate, grid: Mapping[str, Sequence[Any]], *, like: bool
    ) -> list[Configuration]:
        document = self.base.model_dump(mode="json", exclude_unset=True)
        for field, value in candidate.changes.items():
            document = changed(document, field, value)
        made = []
        for values in itertools.product(*grid.values()):
            settings = dict(zip(grid, values, strict=True))
            chosen = reduce(lambda table, item: changed(table, *item), settings.items(), document)
            experiment = self._validated(candidate, chosen)
            if like:
                experiment = experiment.model_copy(update={"recipe": plain_of(experiment.recipe)})
                kept = experiment.recipe.model_dump(mode="json")
                settings = {field: value for field, value in settings.items() if _stays(field, value, kept)}
            made.append(Configuration(settings=settings, experiment=experiment))
        return made

    def _validated(self, candidate: Candidate, document: dict[str, Any]) -> Experiment:
        try:
            return validate(Experiment, document, self.file)
        except ConfigError as error:
            field = ".".join(part for part in ("candidates", candidate.name, error.field) if part)
            if candidate not in self.comparison.candidates:
                field = ".".join(part for part in ("grid", error.field) if part)
            raise ConfigError(error.problem, file=self.file, field=field, fix=error.fix) from None


def _stays(field: str, value: Any, recipe: Any) -> bool:
    """Whether a setting of the grid is still one of the plain recipe."""
    first, *rest = field.split(".")
    if first != "recipe":
        return True
    for part in rest:
        recipe = recipe.get(part) if isinstance(recipe, dict) else None
    return bool(recipe == value)


def _distinct(configurations: Iterable[Configuration]) -> tuple[Configuration, ...]:
    """Of several that are the same experiment the first."""
    found: dict[str, Configuration] = {}
    for configuration in configurations:
        found.setdefault(configuration.experiment.model_dump_json(), configuration)
    return tuple(found.values())


def _is_there(competitor: Competitor, others: Sequence[Competitor]) -> bool:
    """Whether one of the others that train in the same way is a plain FedAvg too, and tries all that this one tries."""
    wanted = {configuration.experiment.model_dump_json() for configuration in competitor.configurations}
    return any(
        wanted <= {configuration.experiment.model_dump_json() for configuration in other.configurations}
        for other in others
        if other.kind == competitor.kind and all(_is_plain(one.experiment) for one in other.configurations)
    )


def _is_plain(experiment: Experiment) -> bool:
    return plain_of(experiment.recipe) == experiment.recipe


def _check_same(found: Sequence[Competitor], file: Path) -> None:
    """Refuse what would not be a comparison.

    Raises:
        ConfigError: names the competitor and the field.
    """
    first = found[0].configurations[0].experiment
    for competitor in found:
        for configuration in competitor.configurations:
            wrong = _unlike(configuration.experiment, first)
            if wrong is not None:
                problem, fix = wrong
                if configuration.settings:
                    problem = f"with {configuration.text}: {problem}"
                baseline = competitor.name in {FEDAVG, POOLED, LOCAL}
                field = "grid" if baseline else f"candidates.{competitor.name.removeprefix(LIKE)}"
                raise ConfigError(problem, file=file, field=field, fix=fix)


def _unlike(experiment: Experiment, first: Experiment) -> tuple[str, str] | None:
    """What keeps two experiments from being compared, and the fix."""
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
    return None


def _at(experiment: Experiment, field: str) -> Any:
    return reduce(getattr, field.split("."), experiment)


def _samples(experiment: Experiment) -> int:
    return experiment.rounds * experiment.train.steps * experiment.train.batch_size


def _product(experiment: Experiment) -> str:
    return f"{experiment.rounds} x {experiment.train.steps} x {experiment.train.batch_size}"
