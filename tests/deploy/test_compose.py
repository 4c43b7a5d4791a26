"""The rehearsal in containers: its file, and its very commands as processes that are as hardened as containers."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedmed_common.cli import COMMANDS
from fedmed_simulations.rehearsal.machines import FEDMED, Machine, fedmed, free_ports, wait_for

from . import sandbox
from .conftest import DEPLOY, output, tool

COMPOSE = DEPLOY / "compose"
FILE: dict[str, Any] = yaml.safe_load((COMPOSE / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = FILE["services"]
SITES = [name for name in SERVICES if name != "server"]
RUNNING = ("server", SITES[0])
"""The services that the tests run: the hospitals differ in their folders alone."""


def test_the_file_is_a_compose_file() -> None:
    output(tool("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", COMPOSE / "compose.yaml")


@pytest.mark.parametrize("name", SERVICES)
def test_a_container_is_hardened(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["user"] == "${FEDMED_UID:-10001}:${FEDMED_GID:-10001}"
    assert service["init"] is True
    assert all("noexec" in mount and "nosuid" in mount for mount in service["tmpfs"])
    assert not {"ports", "privileged", "cap_add", "network_mode", "pid", "devices"} & service.keys()


def test_no_container_reaches_the_world() -> None:
    assert FILE["networks"] == {"consortium": {"internal": True}}
    assert {tuple(service["networks"]) for service in SERVICES.values()} == {("consortium",)}


@pytest.mark.parametrize("name", SERVICES)
def test_what_a_container_runs_and_is_asked_are_commands(name: str) -> None:
    service = SERVICES[name]
    assert " ".join(service["command"]) in COMMANDS
    kind, program, *line = service["healthcheck"]["test"]
    assert (kind, program) == ("CMD", "fedmed")
    assert " ".join(line) in COMMANDS


def test_a_site_sees_its_own_home_and_reads_its_own_images() -> None:
    for name in SITES:
        home, data = SERVICES[name]["volumes"]
        assert re.search(rf"/sites/{name}:/var/lib/fedmed$", home)
        assert re.search(rf"/data/{name}:/data:ro$", data)


def test_the_script_that_prepares_it_is_clean() -> None:
    output(tool("shellcheck"), COMPOSE / "prepare.sh")
    said = re.search(r'^sites="(.+)"$', (COMPOSE / "prepare.sh").read_text(), re.MULTILINE)
    assert said is not None
    assert said[1].split() == SITES


class Rehearsal:
    """The services of the compose file as sandboxed processes, in the folder that ``prepare.sh`` made."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.machines = folder, {}
        self.server = folder / "consortium" / "server"

    def home(self, name: str) -> Path:
        return self.server if name == "server" else self.folder / "sites" / name

    def start(self, name: str) -> Machine:
        data = self.folder / "data" / name if name != "server" else self.folder / "data"
        command = sandbox.sandboxed([*FEDMED, *SERVICES[name]["command"]], home=self.home(name), data=data)
        environment = {**_image_environment(name), "FEDMED_HOME": sandbox.HOME}
        machine = Machine(command, log=self.folder / f"{name}.log", environment=environment)
        self.machines[name] = machine
        return machine

    def healthy(self, name: str) -> bool:
        line = SERVICES[name]["healthcheck"]["test"][2:]
        command = [*FEDMED, *line, "--home", str(self.home(name))]
        return subprocess.run(command, capture_output=True, check=False, timeout=60).returncode == 0

    def wait_healthy(self, name: str) -> None:
        wait_for(lambda: self.healthy(name), f"{name} is healthy", 180, (self.machines[name],))

    def connected(self) -> set[str]:
        sites = json.loads(fedmed("sites", "--home", str(self.server), "--json"))
        return {site["site"] for site in sites if site["connection"] == "connected"}


def _image_environment(name: str) -> dict[str, str]:
    """What the image of a service sets, but for the place of its programs."""
    image = "server" if name == "server" else "site"
    text = (DEPLOY / "images" / f"{image}.Dockerfile").read_text().rpartition("FROM")[2].replace("\\\n", " ")
    said = re.search(r"^ENV (.+)$", text, re.MULTILINE)
    assert said is not None
    pairs = [pair.split("=", 1) for pair in said[1].split()]
    return {name: value for name, value in pairs if name != "PATH"}


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rehearsal]:
    folder = tmp_path_factory.mktemp("rehearsal")
    sandbox.require(folder)
    public, private, health = free_ports(3)
    fedmed(
        "phantom",
        str(folder / "data"),
        "--sites",
        "3",
        "--patients",
        "5",
        "--shape",
        "32,32,16",
        "--seed",
        "1",
    )
    environment = {
        **os.environ,
        "FEDMED": f"{sys.executable} {folder}/fedmed.py",
        "FEDMED_ADDRESS": f"127.0.0.1:{public}",
        "FEDMED_IMAGES": sandbox.DATA,
    }
    (folder / "fedmed.py").write_text("from fedmed_common.cli import main; main()\n")
    prepared = subprocess.run(
        ["unshare", "--user", "--map-user=10001", "--map-group=10001", COMPOSE / "prepare.sh", folder],
        env=environment, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert prepared.returncode == 0, prepared.stderr
    settings = folder / "consortium" / "server" / "server.toml"
    text = (
        settings.read_text()
        .replace("port = 8444", f"port = {private}")
        .replace("port = 8445", f"port = {health}")
    )
    settings.write_text(text)
    running = Rehearsal(folder)
    try:
        for name in RUNNING:
            running.start(name)
            running.wait_healthy(name)
        yield running
    finally:
        for machine in reversed(running.machines.values()):
            machine.stop()


def test_every_service_runs_hardened_and_is_healthy(rehearsal: Rehearsal) -> None:
    wait_for(
        lambda: rehearsal.connected() == set(RUNNING[1:]),
        "all connect",
        60,
        tuple(rehearsal.machines.values()),
    )
    for machine in rehearsal.machines.values():
        status = Path(f"/proc/{machine.pid}/status").read_text()
        assert set(re.findall(r"^Cap\w+:\s+(\w+)$", status, re.MULTILINE)) == {"0" * 16}
        assert re.search(r"^NoNewPrivs:\s+1$", status, re.MULTILINE)


def test_a_hardened_consortium_finishes_a_run(rehearsal: Rehearsal) -> None:
    experiment = rehearsal.server / "experiment.toml"
    text = experiment.read_text().replace("rounds = 5", "rounds = 1").replace("steps = 10", "steps = 2")
    experiment.write_text(text.replace("minimum_sites = 2", "minimum_sites = 1"))
    sites = ",".join(RUNNING[1:])
    said = fedmed("launch", str(experiment), "--sites", sites, "--home", str(rehearsal.server), "--json")
    launched = json.loads(said)
    report = rehearsal.server / "runs" / launched["run"] / "report.html"
    wait_for(report.exists, "the run ends", 200, tuple(rehearsal.machines.values()))
    status = json.loads(fedmed("status", launched["run"], "--home", str(rehearsal.server), "--json"))
    assert status["state"] == "completed", status


def test_a_stopped_service_ends_well(rehearsal: Rehearsal) -> None:
    for name in reversed(RUNNING):
        assert rehearsal.machines[name].stop() == 0
    assert not rehearsal.healthy("server")
