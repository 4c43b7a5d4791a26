"""Who is compared: competitors with what each may try, and what of them is trained on its own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from fedmed_common.config import Experiment
from fedmed_simulations.compare.settings import POOLED, Kind
from fedmed_simulations.federation import with_one_trainer

LAST = 5
"""The estimator: the mean of so many evaluation rounds, the last ones. It is no setting, so that nobody picks it afterwards."""


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
        experiment = with_one_trainer(experiment)
        changes: dict[str, Any] = {}
        if self.baseline == POOLED:
            changes["train"] = experiment.train.model_copy(update={"steps": experiment.train.steps * times})
        return experiment.model_copy(update=changes)


def arms(competitor: Competitor, sites: Iterable[str]) -> tuple[Arm, ...]:
    """What of a competitor is trained on its own."""
    if competitor.kind == "local":
        return tuple(Arm(competitor=competitor, baseline=f"local:{site}") for site in sites)
    return (Arm(competitor=competitor, baseline=POOLED if competitor.kind == "pooled" else ""),)


def last_rounds(experiment: Experiment) -> tuple[int, ...]:
    """The last evaluation rounds, whose mean is what counts."""
    return experiment.evaluation_rounds[-LAST:]
