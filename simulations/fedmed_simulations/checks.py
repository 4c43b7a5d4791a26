"""All that can be wrong with an experiment before anything is written. Imports no network library, so that it answers at once."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path

from fedmed_common.config import Experiment, Site
from fedmed_common.errors import ConfigError
from fedmed_common.loading import load_site
from fedmed_server.names import check_names

_MISSPELT = 0.88
"""How alike two names are, 0 to 1, of which one may be the other misspelt."""


def check_experiment(experiment: Experiment, file: Path) -> tuple[Site, ...]:
    """The experiment's sites, once its names are known and its folders are there.

    Raises:
        ConfigError: names the file, the field and the fix.
    """
    check_names(experiment, file)
    try:
        sites = _listed_sites(experiment)
        _check_classes(sites, experiment.task.classes)
        for site in sites:
            _check_site(site, experiment)
        _check_column(sites, experiment)
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


def _check_column(sites: Sequence[Site], experiment: Experiment) -> None:
    """What a partition by column looks into is there; what stands in it is read with the data."""
    partition = experiment.simulation.partition if experiment.simulation else None
    if partition is None or partition.column is None:
        return
    field = "simulation.partition.index"
    if partition.index is not None and not partition.index.is_file():
        raise ConfigError(f"no such file: {partition.index}", field=field, fix="correct the path")
    plain = next((site for site in sites if site.data.format != "dicom"), None)
    if partition.index is None and plain is not None:
        raise ConfigError(
            f"is missing: the files of site '{plain.name}', of format {plain.data.format}, do not say the '{partition.column}'",
            field=field,
            fix="name a CSV file with such a column, as index = 'index.csv'",
        )


def _check_site(site: Site, experiment: Experiment) -> None:
    """A class that the experiment does not use is as good as unlabelled, unless it looks like one that is misspelt."""
    classes = experiment.task.classes
    if not set(site.labels) & set(classes):
        raise ConfigError(
            f"site '{site.name}' labels {', '.join(sorted(site.labels)) or 'nothing'}, and no class of the experiment",
            field="labels",
            fix=f"correct task.classes or the site's labels; classes: {', '.join(classes)}",
        )
    missing = [name for name in classes if name not in site.labels]
    for name in sorted(set(site.labels) - set(classes)):
        near = difflib.get_close_matches(name.casefold(), missing, n=1, cutoff=_MISSPELT)
        if near:
            raise ConfigError(
                f"site '{site.name}' labels '{name}', and not '{near[0]}', which the experiment asks for",
                field=f"labels.{name}",
                fix=f"did you mean '{near[0]}'? If not, name the labels of '{name}' in ignore_labels instead",
            )
    if not site.data.root.is_dir():
        raise ConfigError(
            f"site '{site.name}': no such folder: {site.data.root}",
            field="data.root",
            fix="correct the path, or put the data there",
        )


def _check_classes(sites: Sequence[Site], classes: Sequence[str]) -> None:
    """One class that no site labels is misspelt, or cannot be learned. Where none is labelled, each site says so itself."""
    labelled = {name for site in sites for name in site.labels}
    if not labelled & set(classes):
        return
    for name in classes:
        if name not in labelled:
            near = difflib.get_close_matches(name, labelled, n=1)
            raise ConfigError(
                f"no site labels '{name}'",
                field="task.classes",
                fix=f"did you mean '{near[0]}'?" if near else f"labelled: {', '.join(sorted(labelled))}",
            )
