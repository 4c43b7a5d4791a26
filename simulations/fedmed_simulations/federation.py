"""The sites of a simulation: a folder of hospitals, a list in the experiment, drawn from a pool, or pooled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from fedmed_client.data.cohort import Cohort, open_cohort, pool, regroup
from fedmed_client.workbench import SiteHome
from fedmed_common.config import Experiment, Partition, Policy, Site
from fedmed_simulations.partition import draw_sites

_DRAWN: dict[str, tuple[Cohort, ...]] = {}


def make_homes(experiment: Experiment, sites: Sequence[Site], folder: Path) -> list[SiteHome]:
    """One home for each site of the federation; ``folder`` holds a working folder for each."""
    homes = [SiteHome(site=site, folder=folder / site.name) for site in sites]
    partition = experiment.simulation.partition if experiment.simulation else None
    if partition is None:
        return homes
    source = tuple(homes)
    names = [cohort.site for cohort in _drawn(source, partition, experiment)]
    return [
        SiteHome(
            site=_named(sites[0], name),
            folder=folder / name,
            open=partial(_open_drawn, source, partition, index),
        )
        for index, name in enumerate(names)
    ]


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


def forget() -> None:
    """Close the cohorts that were drawn."""
    _DRAWN.clear()


def _named(site: Site, name: str) -> Site:
    return site.model_copy(update={"name": name, "policy": Policy(least_patients=1)})


def _drawn(source: tuple[SiteHome, ...], partition: Partition, experiment: Experiment) -> tuple[Cohort, ...]:
    key = repr((source, partition, experiment.order_text()))
    if key not in _DRAWN:
        everyone = pool([open_cohort(home.site, experiment, home.folder) for home in source], "all")
        _DRAWN[key] = tuple(draw_sites(everyone, partition, experiment.seed))
    return _DRAWN[key]


def _open_drawn(
    source: tuple[SiteHome, ...], partition: Partition, index: int, experiment: Experiment
) -> Cohort:
    return _drawn(source, partition, experiment)[index]


def _open_pooled(homes: tuple[SiteHome, ...], name: str, experiment: Experiment) -> Cohort:
    everyone = pool([home.cohort(experiment) for home in homes], name)
    return _only(everyone, name, lambda split: split == "train")


def _open_held_out(home: SiteHome, experiment: Experiment) -> Cohort:
    return _only(home.cohort(experiment), home.site.name, lambda split: split != "train")


def _only(cohort: Cohort, name: str, keep: Callable[[str], bool]) -> Cohort:
    return regroup(cohort, name, sorted({case.patient for case in cohort.cases if keep(case.split)}))
