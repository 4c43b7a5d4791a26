"""A comparison with its rows, ready to be carried out: which runs it takes, and what is chosen out of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from fedmed_common.config import Experiment
from fedmed_common.errors import DataError, FedmedError
from fedmed_common.metrics import score_called
from fedmed_simulations.compare.columns import Classes, thirds
from fedmed_simulations.compare.plan import Arm, Competitor, Configuration, arms
from fedmed_simulations.compare.runs import Run, Runner
from fedmed_simulations.compare.settings import Comparison


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What an arm tried, and what it took. ``scores``: validation by configuration; empty where there was nothing to choose."""

    arm: Arm
    configuration: Configuration
    scores: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """A comparison with its competitors, ready to be carried out."""

    comparison: Comparison
    base: Experiment
    competitors: tuple[Competitor, ...]
    runner: Runner

    @property
    def budget(self) -> int:
        """How many configurations each competitor tries."""
        return len(self.competitors[0].configurations)

    @property
    def arms(self) -> tuple[Arm, ...]:
        """All that is tuned and trained on its own."""
        sites = self.runner.sites.survey(self._under(self.comparison.seeds[0]))
        return tuple(arm for competitor in self.competitors for arm in arms(competitor, sites))

    def tuning(self, arm: Arm) -> list[list[Run]]:
        """Its runs on validation patients: for each configuration one a seed; none where there is nothing to choose."""
        if self.budget == 1:
            return []
        return [
            [self.runner.run(arm, configuration, seed, final=False) for seed in self.comparison.tuned_under]
            for configuration in arm.competitor.configurations
        ]

    def final(self, choice: Choice) -> list[Run]:
        """The runs of an arm that count."""
        return [
            self.runner.run(choice.arm, choice.configuration, seed, final=True)
            for seed in self.comparison.seeds
        ]

    def choose(self, arm: Arm) -> Choice:
        """The configuration with the best validation over the tuning seeds, of equal ones the first.

        Raises:
            FedmedError: none has a value.
        """
        runs = self.tuning(arm)
        if not runs:
            return Choice(arm=arm, configuration=arm.competitor.configurations[0])
        scores = tuple(sum(run.validation() for run in seeds) / len(seeds) for seeds in runs)
        metric = score_called(self.base.federation.best)
        sign = -1.0 if metric is not None and metric.better == "lower" else 1.0
        ranked = [-math.inf if math.isnan(score) else sign * score for score in scores]
        if max(ranked) == -math.inf:
            raise FedmedError(
                f"{arm.label}: none of its configurations has a '{self.base.federation.best}' on validation patients in each of "
                "the last evaluation rounds\n  fix: more validation patients, or a smaller policy.least_patients at the sites"
            )
        best = ranked.index(max(ranked))
        return Choice(arm=arm, configuration=arm.competitor.configurations[best], scores=scores)

    def classes(self) -> Classes:
        """The classes and their groups, as the file says or in thirds; more seeds do not change them."""
        given = self.comparison.groups
        groups = thirds(self.presence()) if given is None else given.model_dump()
        return Classes(names=self.base.task.classes, groups=groups, lead=self.base.task.scores[0])

    def presence(self) -> dict[str, float]:
        """By class: training patients of all sites who show it, mean over the tuning seeds."""
        seeds = self.comparison.tuned_under
        return {name: count / len(seeds) for name, count in self.runner.sites.presence(seeds).items()}

    def check_test_patients(self) -> None:
        """Whether there is anybody to test on.

        Raises:
            DataError: not under every seed.
        """
        for seed in self.comparison.seeds:
            if not sum(one.tested for one in self.runner.sites.survey(self._under(seed)).values()):
                raise DataError(
                    f"no site has a test patient under seed {seed}\n  fix: a larger data.splits.test, or [test] in the comparison"
                )

    def _under(self, seed: int) -> Experiment:
        return self.base.model_copy(update={"seed": seed})


def told(choice: Choice) -> dict[str, Any]:
    """A choice as JSON."""
    configurations = choice.arm.competitor.configurations
    scores = choice.scores or (math.nan,) * len(configurations)
    return {
        "competitor": choice.arm.label,
        "chosen": dict(choice.configuration.settings),
        "tried": [
            {"settings": dict(one.settings), "validation": None if math.isnan(score) else score}
            for one, score in zip(configurations, scores, strict=True)
        ],
        "filled": choice.arm.competitor.filled,
    }
