"""One run of a comparison: its folder, named by the content of all that decides on its result, and carrying it out."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from rich.console import Console

from fedmed_common.config import Experiment
from fedmed_common.errors import FedmedError, Interrupted
from fedmed_server import history
from fedmed_server.app import RunRequest
from fedmed_server.folders import locked
from fedmed_server.history import RoundDone
from fedmed_server.state import RunState, load_state
from fedmed_simulations import runfolder
from fedmed_simulations.compare import measured
from fedmed_simulations.compare.plan import Arm, Configuration, last_rounds
from fedmed_simulations.compare.sites import Sites, forget
from fedmed_simulations.engines import ENGINES
from fedmed_simulations.resources import ANY, Engine, Resources
from fedmed_simulations.run import how_it_ended, incidents_told
from fedmed_strategies.presets import recipe_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One arm, one configuration, one seed. ``final``: its last models are measured on test patients; else it is for tuning."""

    arm: Arm
    configuration: Configuration
    seed: int
    final: bool
    experiment: Experiment
    folder: Path

    @property
    def text(self) -> str:
        """The run in words."""
        what = "" if self.final else f", tuning: {self.configuration.text}"
        return f"{self.arm.label}, seed {self.seed}{what}"

    def is_done(self) -> bool:
        """Whether it is finished, and all that is wanted of it measured."""
        ended = how_it_ended(self.folder)
        lacking = self.final and measured.missing(self.folder, last_rounds(self.experiment))
        return ended is not None and ended.status == "completed" and not lacking

    def validation(self) -> float:
        """Its mean criterion on the sites' validation patients in the last evaluation rounds; NaN where one has none."""
        lines = history.read(self.folder / history.FILE)
        criteria = {line.round: line.criterion for line in lines if isinstance(line, RoundDone)}
        values = [criteria.get(number) for number in last_rounds(self.experiment)]
        return sum(math.nan if value is None else value for value in values) / len(values)


@dataclass(frozen=True, slots=True, kw_only=True)
class Runner:
    """Names runs and carries them out. ``times``: how many sites' steps pooled training takes. ``resources``: of the engine."""

    sites: Sites
    folder: Path
    engine: Engine
    command: str
    times: int
    console: Console
    resources: Resources = ANY

    def run(self, arm: Arm, configuration: Configuration, seed: int, *, final: bool) -> Run:
        """The run, begun or not."""
        experiment = arm.experiment(configuration, seed, self.times)
        name = self._digest(experiment, arm.baseline, final=final)
        return Run(
            arm=arm,
            configuration=configuration,
            seed=seed,
            final=final,
            experiment=experiment,
            folder=self.folder / name,
        )

    def carry_out(self, run: Run, on_round: Callable[[RoundDone], None]) -> None:
        """Run it, or go on with it where it was interrupted; a run that is done is left alone.

        Raises:
            FedmedError: the run could not end well; what was done is kept.
            Interrupted: it was stopped.
        """
        if run.is_done():
            return
        if not run.folder.exists():
            plan = runfolder.Plan(
                engine=self.engine,
                command=self.command,
                baseline=run.arm.baseline,
                resources=self.resources,
            )
            runfolder.create(run.folder, run.experiment, plan)
        try:
            with locked(run.folder):
                self._train(run, on_round)
        except KeyboardInterrupt:
            raise Interrupted("stopped") from None
        finally:
            forget()
        if not run.is_done():
            ended = how_it_ended(run.folder)
            raise FedmedError(
                f"{run.folder}: {run.text}: not all of it was done and measured "
                f"({ended.status if ended else 'it has not ended'})\n"
                "  fix: see to its sites, and delete this folder to run it again"
            )

    def _train(self, run: Run, on_round: Callable[[RoundDone], None]) -> None:
        homes = self.sites.training(run.experiment, run.arm.baseline)

        def on_state(state: RunState) -> None:
            if run.final and state.round in last_rounds(run.experiment):
                measured.measure(
                    run.folder, self.sites.testing(run.experiment, run.arm.baseline), run.experiment, state
                )

        reached = load_state(run.folder)
        if reached is not None:
            on_state(reached)
        if how_it_ended(run.folder) is not None:
            return
        request = RunRequest(
            experiment=run.experiment,
            folder=run.folder,
            command=self.command,
            sites=len(homes),
            on_round=on_round,
            on_state=on_state,
            evaluated=frozenset(last_rounds(run.experiment)),
        )
        with incidents_told(homes, self.console):
            ENGINES[self.engine](homes, request, self.resources)

    def _digest(self, experiment: Experiment, baseline: str, *, final: bool) -> str:
        """Of all that decides on the result: the experiment, the seed in it, what the sites hold and permit, and the program."""
        surveyed = self.sites.survey(experiment)
        weights, simulation = experiment.transfer.weights, experiment.simulation
        what = {
            "experiment": experiment.order_text(),
            "simulated": None if simulation is None else [simulation.regions, simulation.pace_spread],
            "recipe": recipe_of(experiment).model_dump(mode="json"),
            "weights": "" if weights is None else _content(weights),
            "baseline": baseline,
            "engine": self.engine,
            "versions": [version(package) for package in ("fedmed", "torch", "monai")],
            "sites": {name: site.digest for name, site in surveyed.items()},
            "tested": {name: site.test_digest for name, site in surveyed.items()} if final else None,
            "policies": self.sites.policies(experiment),
        }
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:20]


def _content(path: Path) -> str:
    """A digest of a file, or of all files of a folder."""
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.relative_to(path.parent)}\0".encode())
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()
