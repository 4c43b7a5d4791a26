"""The sites of a simulation: a folder of hospitals, a list in the experiment, drawn from a pool, or pooled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from fedmed_client.data.cohort import Cohort, open_cohort, pool, regroup
from fedmed_client.workbench import SiteHome
from fedmed_common.config import Experiment, Partition, Policy, Site
from fedmed_simulations.partition import Drawn, draw_sites
from fedmed_strategies.buffered import Buffered

_DRAWN: dict[str, Drawn] = {}


def make_homes(experiment: Experiment, sites: Sequence[Site], folder: Path) -> list[SiteHome]:
    """One home for each site of the federation; ``folder`` holds a working folder for each."""
    source, partition = _source(sites, folder), _partition(experiment)
    if partition is None:
        return list(source)
    names = [cohort.site for cohort in _drawn(source, partition, experiment).sites]
    return [
        SiteHome(
            site=_named(sites[0], name),
            folder=folder / name,
            open=partial(_open_drawn, source, partition, index),
        )
        for index, name in enumerate(names)
    ]


def drawing(experiment: Experiment, sites: Sequence[Site], folder: Path) -> Drawn | None:
    """How the federation's sites were drawn from a pool; None where they are those that are listed. As ``make_homes``."""
    partition = _partition(experiment)
    return None if partition is None else _drawn(_source(sites, folder), partition, experiment)


def pooled_homes(homes: Sequence[SiteHome]) -> list[SiteHome]:
    """The pooled baseline: one site trains on everyone's training patients, and each site keeps what it holds out."""
    everyone = tuple(homes)
    name = "pooled"
    while name in {home.site.name for home in homes}:
        name += "-all"
    trainer = SiteHome(
        site=_named(homes[0].site, name),
        folder=homes[0].folder.parent / name,
        open=partial(_open_pooled, everyone, name),
    )
    return [trainer, *(replace(home, open=partial(_open_held_out, home)) for home in homes)]


def with_one_trainer(experiment: Experiment) -> Experiment:
    """The experiment of a baseline, in which one site trains however many the federation asks for."""
    federation = experiment.federation.model_copy(update={"minimum_sites": 1})
    settings = {name: of for name, of in experiment.recipe.settings.items() if name != Buffered.name}
    recipe = experiment.recipe.model_copy(update={"settings": settings})
    simulation = experiment.simulation and experiment.simulation.model_copy(update={"regions": 0})
    return experiment.model_copy(
        update={"federation": federation, "recipe": recipe, "simulation": simulation}
    )


def forget() -> None:
    """Close the cohorts that were drawn."""
    _DRAWN.clear()


def _named(site: Site, name: str) -> Site:
    return site.model_copy(update={"name": name, "policy": Policy(least_patients=1)})


def _source(sites: Sequence[Site], folder: Path) -> tuple[SiteHome, ...]:
    return tuple(SiteHome(site=site, folder=folder / site.name) for site in sites)


def _partition(experiment: Experiment) -> Partition | None:
    return experiment.simulation.partition if experiment.simulation else None


def _drawn(source: tuple[SiteHome, ...], partition: Partition, experiment: Experiment) -> Drawn:
    key = repr((source, partition, experiment.order_text()))
    if key not in _DRAWN:
        cohorts = [open_cohort(home.site, experiment, home.folder) for home in source]
        everyone = pool(cohorts, "all")
        values = _values(source, cohorts, everyone, partition, experiment) if partition.column else None
        _DRAWN[key] = draw_sites(everyone, partition, experiment.seed, values)
    return _DRAWN[key]


def _values(
    source: Sequence[SiteHome],
    cohorts: Sequence[Cohort],
    everyone: Cohort,
    partition: Partition,
    experiment: Experiment,
) -> dict[int, str]:
    """What the partition's column says of each patient of the pool, whose cases are those of the cohorts in their order."""
    from fedmed_client.data.columns import values_by_patient

    column = partition.column or ""
    said = []
    for home, cohort in zip(source, cohorts, strict=True):
        of_site = values_by_patient(home.site, experiment, home.folder, column, partition.index)
        said += [of_site[case.patient] for case in cohort.cases]
    return {case.patient: value for case, value in zip(everyone.cases, said, strict=True)}


def _open_drawn(
    source: tuple[SiteHome, ...], partition: Partition, index: int, experiment: Experiment
) -> Cohort:
    return _drawn(source, partition, experiment).sites[index]


def _open_pooled(homes: tuple[SiteHome, ...], name: str, experiment: Experiment) -> Cohort:
    everyone = pool([home.cohort(experiment) for home in homes], name)
    return _only(everyone, name, lambda split: split == "train")


def _open_held_out(home: SiteHome, experiment: Experiment) -> Cohort:
    return _only(home.cohort(experiment), home.site.name, lambda split: split != "train")


def _only(cohort: Cohort, name: str, keep: Callable[[str], bool]) -> Cohort:
    return regroup(cohort, name, sorted({case.patient for case in cohort.cases if keep(case.split)}))
