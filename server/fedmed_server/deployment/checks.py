"""All that can be wrong with a launch before anything of it is written or a site is asked."""

from __future__ import annotations

from pathlib import Path

from fedmed_common.config import Experiment
from fedmed_common.errors import ConfigError
from fedmed_common.lookup import find
from fedmed_server.deployment.home import ServerHome
from fedmed_server.names import check_names, check_start
from fedmed_server.provision.registry import load_registry


def check_launch(
    home: ServerHome, experiment: Experiment, file: Path, wanted: tuple[str, ...] | None
) -> tuple[str, ...]:
    """The names of the sites that take part, in order: those that are wanted, or all that are registered.

    Raises:
        ConfigError: a name in the experiment or a site is unknown, a site is revoked, or they are too few.
        ProvisionError: the registry cannot be read.
    """
    check_names(experiment, file)
    check_start(experiment, file)
    registry = load_registry(home.registry)
    for name in wanted or ():
        if find(registry, name, field="--sites").revoked:
            raise ConfigError(
                f"site '{name}' is revoked",
                field="--sites",
                fix="leave it out, or provision the site again under a new name",
            )
    present = (name for name, site in registry.items() if not site.revoked)
    sites = tuple(sorted(present if wanted is None else wanted))
    needed = experiment.federation.minimum_sites
    if len(sites) < needed:
        raise ConfigError(
            f"the experiment needs {needed} sites, and {len(sites)} take part",
            file=file,
            field="federation.minimum_sites",
            fix="name more sites, or ask for fewer",
        )
    return sites
