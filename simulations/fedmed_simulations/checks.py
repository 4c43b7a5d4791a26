"""All that can be wrong with an experiment before anything is written. Imports no network library, so that it answers at once."""

from __future__ import annotations

from pathlib import Path

from fedmed_common.config import Experiment, Site
from fedmed_common.errors import ConfigError
from fedmed_common.loading import load_site
from fedmed_server.names import check_names


def check_experiment(experiment: Experiment, file: Path) -> tuple[Site, ...]:
    """The experiment's sites, once its names are known and its folders are there.

    Raises:
        ConfigError: names the file, the field and the fix.
    """
    check_names(experiment, file)
    try:
        sites = _listed_sites(experiment)
        for site in sites:
            _check_site(site, experiment)
    except ConfigError as error:
        raise (
            error if error.file else ConfigError(error.problem, file=file, field=error.field, fix=error.fix)
        ) from None
    return sites


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
