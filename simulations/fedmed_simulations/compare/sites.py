"""The sites of a comparison: those that train, which have no test patients, and those on which is measured."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from fedmed_client.data.cohort import Cohort, open_cohort, regroup
from fedmed_client.workbench import COHORTS, SiteHome
from fedmed_common.config import Experiment, Site
from fedmed_common.errors import ConfigError, DataError
from fedmed_simulations import federation
from fedmed_simulations.checks import check_experiment
from fedmed_simulations.compare.settings import POOLED
from fedmed_simulations.federation import make_homes, pooled_homes


@dataclass(frozen=True, slots=True, kw_only=True)
class Surveyed:
    """What is known of a site under one seed before anything is trained.

    ``digest``: of its prepared data and its splits; ``test_digest``: of its test patients. ``presence``: by annotated class,
    training patients who show it.
    """

    digest: str
    test_digest: str
    tested: int
    presence: dict[str, int]


@dataclass(slots=True, kw_only=True)
class Sites:
    """The sites, under any seed. ``folder`` keeps a working folder for each. ``test``: those with the test patients, by name."""

    base: Experiment
    file: Path
    folder: Path
    console: Console
    test_federation: Path | None = None
    _sites: tuple[Site, ...] = field(default=(), init=False)
    _test: dict[str, Site] = field(default_factory=dict, init=False)
    _surveys: dict[str, dict[str, Surveyed]] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self._sites = check_experiment(self.base, self.file)
        if self.test_federation is not None:
            self._test = self._check_test(self.test_federation)

    def training(self, experiment: Experiment, baseline: str) -> list[SiteHome]:
        """Those that train and validate. None of them has a test patient, so no run can look at one."""
        homes = [replace(home, open=partial(_without_test, home)) for home in self._all(experiment)]
        if baseline == POOLED:
            return pooled_homes(homes)
        return _of(homes, baseline)

    def testing(self, experiment: Experiment, baseline: str) -> list[SiteHome]:
        """Those on which a model of the run is measured: they have test patients alone."""
        homes = self._all(experiment)
        if self._test:
            homes = [
                replace(
                    home,
                    site=self._test[home.site.name],
                    open=partial(_all_tested, self._test[home.site.name], home),
                )
                for home in homes
            ]
        else:
            homes = [replace(home, open=partial(_only_test, home)) for home in homes]
        return _of(homes, baseline)

    def survey(self, experiment: Experiment) -> dict[str, Surveyed]:
        """By site; the data are prepared where they are not yet.

        Raises:
            DataError: a site's data cannot be used, or it has nobody to train on.
        """
        task = experiment.task.model_dump_json(include={"name", "classes", "labels", "dimensions"})
        key = json.dumps([experiment.data.model_dump_json(), task, experiment.seed])
        if key not in self._surveys:
            with self.console.status("preparing") as status:
                found = {}
                for home, test in zip(self._all(experiment), self.testing(experiment, ""), strict=True):
                    status.update(f"preparing {escape(home.site.name)}, seed {experiment.seed}")
                    found[home.site.name] = self._look(home, test, experiment)
            self._surveys[key] = found
            federation.forget()
        return self._surveys[key]

    def same_patients_tested(self) -> bool:
        """Whether every seed tests the same patients."""
        return bool(self._test)

    def presence(self, seeds: Sequence[int]) -> Counter[str]:
        """By class: training patients of all sites who show it, added over the seeds."""
        counts: Counter[str] = Counter(dict.fromkeys(self.base.task.classes, 0))
        for seed in seeds:
            for surveyed in self.survey(self.base.model_copy(update={"seed": seed})).values():
                counts.update(surveyed.presence)
        return counts

    def policies(self) -> list[str]:
        """What each site permits: what it tells of validation depends on it."""
        return [site.model_dump_json(include={"name", "policy", "device"}) for site in self._sites]

    def _all(self, experiment: Experiment) -> list[SiteHome]:
        return make_homes(experiment, self._sites, self.folder)

    def _look(self, home: SiteHome, test: SiteHome, experiment: Experiment) -> Surveyed:
        cohort, tested = home.cohort(experiment), test.cohort(experiment)
        if not self._surveys:
            for skipped in cohort.skipped:
                self.console.print(f"[yellow]{escape(home.site.name)}: left out {escape(str(skipped))}[/]")
        if not cohort.patients("train"):
            raise DataError(
                f"site '{home.site.name}' has no training patients under seed {experiment.seed}: alone, it has no model\n"
                "  fix: leave it out, or give it more patients"
            )
        return Surveyed(
            digest=cohort.manifest_hash,
            test_digest=tested.manifest_hash,
            tested=tested.patients("test"),
            presence=cohort.presence("train"),
        )

    def _check_test(self, folder: Path) -> dict[str, Site]:
        simulation = self.base.simulation
        if simulation is None or simulation.partition is not None:
            raise ConfigError(
                "the experiment's sites are drawn, so none of the folder can be theirs",
                file=self.file,
                field="test.federation",
                fix="leave [test] out",
            )
        other = simulation.model_copy(update={"federation": folder, "sites": ()})
        try:
            found = check_experiment(self.base.model_copy(update={"simulation": other}), self.file)
        except ConfigError as error:
            place = "test.federation" if error.field == "simulation.federation" else error.field
            raise ConfigError(error.problem, file=error.file, field=place, fix=error.fix) from None
        sites = {site.name: site for site in found}
        missing = sorted({site.name for site in self._sites} - sites.keys())
        if missing:
            raise ConfigError(
                f"no test patients for {', '.join(missing)}",
                file=self.file,
                field="test.federation",
                fix=f"a site of the same name there; there are {', '.join(sorted(sites))}",
            )
        return sites


def forget() -> None:
    """Close the cohorts that this process holds open: a comparison opens more of them than a process may map files."""
    COHORTS.forget()
    federation.forget()


def _of(homes: Sequence[SiteHome], baseline: str) -> list[SiteHome]:
    if baseline.startswith("local:"):
        return [home for home in homes if home.site.name == baseline.removeprefix("local:")]
    return list(homes)


def _without_test(home: SiteHome, experiment: Experiment) -> Cohort:
    cohort = home.cohort(experiment)
    return regroup(cohort, cohort.site, {case.patient for case in cohort.cases if case.split != "test"})


def _only_test(home: SiteHome, experiment: Experiment) -> Cohort:
    cohort = home.cohort(experiment)
    return regroup(cohort, cohort.site, {case.patient for case in cohort.of("test")})


def _all_tested(site: Site, home: SiteHome, experiment: Experiment) -> Cohort:
    """Every patient of a site of the test federation, whatever the split would be; prepared in the folder of its namesake."""
    cohort = open_cohort(site, experiment, home.folder)
    return replace(cohort, cases=tuple(replace(case, split="test") for case in cohort.cases))
