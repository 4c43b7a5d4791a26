"""The sites of a simulation: a folder of hospitals, a list in the experiment, drawn from a pool, or pooled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from fedmed_client.data.cohort import Cohort, open_cohort, pool, regroup
from fedmed_client.workbench import SiteHome
from fedmed_common.config import Experiment, Partition, Policy, Site, load_site
from fedmed_common.errors import ConfigError
from fedmed_common.lookup import find
from fedmed_common.models import MODELS
from fedmed_common.tasks import TASKS
from fedmed_common.tasks.losses import LOSSES
from fedmed_simulations.partition import draw_sites
from fedmed_strategies.presets import RECIPES

_DRAWN: dict[tuple[tuple[Path, ...], str], tuple[Cohort, ...]] = {}


def check_experiment(experiment: Experiment, file: Path) -> tuple[Site, ...]:
    """All that can be wrong with an experiment before anything is written; its sites.

    Raises:
        ConfigError: names the file, the field and the fix.
    """
    try:
        find(MODELS, experiment.model.name, field="model.name")
        find(TASKS, experiment.task.name, field="task.name")
        find(LOSSES, experiment.task.loss, field="task.loss")
        find(RECIPES, experiment.recipe.name, field="recipe.name")
        sites = _listed_sites(experiment)
        for site in sites:
            _check_site(site, experiment)
    except ConfigError as error:
        raise (
            error if error.file else ConfigError(error.problem, file=file, field=error.field, fix=error.fix)
        ) from None
    return sites


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


def _listed_sites(experiment: Experiment) -> tuple[Site, ...]:
    simulation = experiment.simulation
    if simulation is None:
        raise ConfigError(
            "is missing", field="simulation", fix="add [simulation] with 'federation' or 'sites'"
        )
    if simulation.sites:
        return simulation.sites
    folder = simulation.federation
    if folder is None or not folder.is_dir():
        raise ConfigError(
            f"no such folder: {folder}",
            field="simulation.federation",
            fix="write one with 'fedmed phantom', or correct the path",
        )
    files = sorted(folder.glob("*/site.toml"))
    if not files:
        raise ConfigError(
            f"no site.toml in the subfolders of {folder}",
            field="simulation.federation",
            fix="name a folder of sites",
        )
    sites: dict[str, Site] = {}
    for file in files:
        site = load_site(file)
        if site.name in sites:
            raise ConfigError(
                f"another site is called '{site.name}' too", file=file, field="name", fix="rename one"
            )
        sites[site.name] = site
    return tuple(sites.values())


def _check_site(site: Site, experiment: Experiment) -> None:
    unknown = sorted(set(site.labels) - set(experiment.task.classes))
    if unknown:
        raise ConfigError(
            f"site '{site.name}' labels '{unknown[0]}', which is not a class of the experiment",
            field=f"labels.{unknown[0]}",
            fix=f"add it to task.classes, or take it out of the site's labels and name its labels in ignore_labels; "
            f"classes: {', '.join(experiment.task.classes)}",
        )
    if not site.data.root.is_dir():
        raise ConfigError(
            f"site '{site.name}': no such folder: {site.data.root}",
            field="data.root",
            fix="correct the path, or put the data there",
        )


def _named(site: Site, name: str) -> Site:
    return site.model_copy(update={"name": name, "policy": Policy(least_patients=1)})


def _drawn(source: tuple[SiteHome, ...], partition: Partition, experiment: Experiment) -> tuple[Cohort, ...]:
    key = tuple(home.folder for home in source), partition.model_dump_json() + experiment.order_text()
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
