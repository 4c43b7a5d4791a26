"""A server's home as provisioning makes it, on free ports of the loopback address, and runs launched from it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import tomli_w

from fedmed_common import identity
from fedmed_common.config import Experiment
from fedmed_common.loading import load_experiment
from fedmed_server.deployment import runs
from fedmed_server.deployment.home import ServerHome
from fedmed_server.provision.create import create
from fedmed_server.provision.folder import ConsortiumFolder
from fedmed_server.provision.registry import RegisteredSite, save_registry
from fedmed_simulations.rehearsal.machines import free_ports

SITES = ("alpha", "beta", "gamma")
EXPERIMENT = """
name = "discs"
rounds = 3
[task]
classes = ["disc"]
dimensions = 2
[data]
patch = [16, 16]
[model]
channels = [4, 8]
residual_units = 0
"""


@pytest.fixture
def home(tmp_path: Path) -> ServerHome:
    """A server for three registered sites, of which gamma is revoked; nothing runs."""
    ports = dict(zip(("public", "private", "health"), free_ports(3), strict=True))
    file = tmp_path / "consortium.toml"
    coordinator = {"address": f"127.0.0.1:{ports['public']}"}
    document = {"name": "test", "coordinator": coordinator, "sites": [{"name": name} for name in SITES]}
    file.write_text(tomli_w.dumps(document))
    folder = ConsortiumFolder(tmp_path / "consortium")
    create(file, folder)
    settings = {"name": "test"} | {
        table: {"port": port} | ({"host": "127.0.0.1"} if table != "private" else {})
        for table, port in ports.items()
    }
    folder.server.settings_file.write_text(tomli_w.dumps(settings))
    _register(folder)
    folder.server.prepare()
    return folder.server


def _register(folder: ConsortiumFolder) -> None:
    consortium, authority = folder.recorded(), folder.authority()
    made = {}
    for name in SITES:
        certificate = authority.certify_site(consortium, name, identity.new_key().public_key())
        made[name] = RegisteredSite(name=name, certificate=certificate)
    made["gamma"] = replace(made["gamma"], revoked="2026-01-01T00:00:00+00:00")
    save_registry(folder.server.registry, made)


@pytest.fixture
def experiment_file(tmp_path: Path) -> Path:
    """An experiment that any site could carry out."""
    file = tmp_path / "discs.toml"
    file.write_text(EXPERIMENT)
    return file


@pytest.fixture
def launch(home: ServerHome, experiment_file: Path) -> Callable[..., Path]:
    """Launches a run for alpha and beta, with changes to the experiment; its folder."""
    experiment: Experiment = load_experiment(experiment_file)
    key = identity.load_signing_key(home.signing_key)

    def make(**changes: object) -> Path:
        asked = experiment.model_copy(update=changes)
        return runs.create(home, asked, ("alpha", "beta"), "fedmed launch discs.toml", key)

    return make
