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

from fedmed_client.data.cohort import Cohort, open_cohort, pool, regroup
from fedmed_client.workbench import COHORTS, SiteHome
from fedmed_common.config import Experiment, Site
from fedmed_common.errors import ConfigError, DataError
from fedmed_simulations import federation
from fedmed_simulations.checks import check_experiment
from fedmed_simulations.compare.settings import POOLED
from fedmed_simulations.federation import make_homes, pooled_homes

_SEED = "{seed}"


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """The sites of a seed, and by name those with its test patients."""

    sites: tuple[Site, ...]
    test: dict[str, Site]


@dataclass(slots=True, kw_only=True)
class Sites:
    """The sites, under any seed. ``folder`` keeps a working folder for each.

    ``test_federation``: a folder of sites with test patients. ``federations``: a folder of sites for each seed, in the place of
    the experiment's; ``{seed}`` in either is the seed. ``first_seed``: one that will be asked for."""

    base: Experiment
    file: Path
    folder: Path
    console: Console
    first_seed: int = 0
    test_federation: Path | None = None
    federations: Path | None = None
    _listed: dict[int, Listed] = field(default_factory=dict, init=False)
    _surveys: dict[str, dict[str, Surveyed]] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self._of_seed(self.base.seed if self.federations is None else self.first_seed)

    def training(self, experiment: Experiment, baseline: str) -> list[SiteHome]:
        """Those that train and validate. None of them has a test patient, so no run can look at one."""
        homes = [replace(home, open=partial(_without_test, home)) for home in self._all(experiment)]
        if baseline == POOLED:
            return pooled_homes(homes)
        return _at(homes, baseline)

    def testing(self, experiment: Experiment, baseline: str) -> list[SiteHome]:
        """Those on which a model of the run is measured: they have no validation patients."""
        homes, test = self._all(experiment), self._of_seed(experiment.seed).test
        if test:
            homes = [
                replace(
                    home, site=test[home.site.name], open=partial(_all_tested, test[home.site.name], home)
                )
                for home in homes
            ]
        else:
            homes = [replace(home, open=partial(_only_test, home)) for home in homes]
        return _at(homes, baseline)

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
        return self.test_federation is not None and _SEED not in str(self.test_federation)

    def presence(self, seeds: Sequence[int]) -> Counter[str]:
        """By class: training patients of all sites who show it, added over the seeds."""
        counts: Counter[str] = Counter(dict.fromkeys(self.base.task.classes, 0))
        for seed in seeds:
            for surveyed in self.survey(self.base.model_copy(update={"seed": seed})).values():
                counts.update(surveyed.presence)
        return counts

    def policies(self, experiment: Experiment) -> list[str]:
        """What each site permits: what it tells of validation depends on it."""
        sites = self._of_seed(experiment.seed).sites
        return [site.model_dump_json(include={"name", "policy", "device"}) for site in sites]

    def _all(self, experiment: Experiment) -> list[SiteHome]:
        own = self.folder if self.federations is None else self.folder / f"seed-{experiment.seed}"
        return make_homes(experiment, self._of_seed(experiment.seed).sites, own)

    def _of_seed(self, seed: int) -> Listed:
        """The sites of a seed, which are those of every seed unless a folder's name says otherwise.

        Raises:
            ConfigError: names the field and the fix.
        """
        if seed not in self._listed:
            base = self.base
            if self.federations is not None and base.simulation is not None:
                folder = _of(self.federations, seed)
                simulation = base.simulation.model_copy(update={"federation": folder, "sites": ()})
                base = base.model_copy(update={"simulation": simulation})
            sites = check_experiment(base, self.file)
            test = self._check_test(_of(self.test_federation, seed), sites) if self.test_federation else {}
            self._listed[seed] = Listed(sites=sites, test=test)
        return self._listed[seed]

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

    def _check_test(self, folder: Path, trained: Sequence[Site]) -> dict[str, Site]:
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
        missing = sorted({site.name for site in trained} - sites.keys())
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


def _of(folder: Path, seed: int) -> Path:
    return Path(str(folder).replace(_SEED, str(seed)))


def _at(homes: Sequence[SiteHome], baseline: str) -> list[SiteHome]:
    if baseline.startswith("local:"):
        return [home for home in homes if home.site.name == baseline.removeprefix("local:")]
    return list(homes)


def _without_test(home: SiteHome, experiment: Experiment) -> Cohort:
    cohort = home.cohort(experiment)
    return regroup(cohort, cohort.site, {case.patient for case in cohort.cases if case.split != "test"})


def _only_test(home: SiteHome, experiment: Experiment) -> Cohort:
    """Test patients, beside those who train: a strategy may train its network further on these before it is measured."""
    cohort = home.cohort(experiment)
    return regroup(cohort, cohort.site, {case.patient for case in cohort.cases if case.split != "validation"})


def _all_tested(site: Site, home: SiteHome, experiment: Experiment) -> Cohort:
    """Every patient of a site of the test federation, whatever the split would be; prepared in the folder of its namesake.

    Behind them come those who train at the namesake.
    """
    held = open_cohort(site, experiment, home.folder)
    tested = replace(held, cases=tuple(replace(case, split="test") for case in held.cases))
    cohort = home.cohort(experiment)
    training = regroup(cohort, cohort.site, {case.patient for case in cohort.of("train")})
    return pool([tested, training], cohort.site)
