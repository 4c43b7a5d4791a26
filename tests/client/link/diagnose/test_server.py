"""What the coordinator's server says, and how the command ends."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from diagnosed import at, certify_anew, expect

from fedmed_client.link import diagnose, problems
from fedmed_client.site.home import SiteFolder
from fedmed_common import errors, identity, signed_requests
from fedmed_common.cli import root_command, run
from fedmed_common.errors import ConnectionProblem
from fedmed_server.provision.registry import load_registry, save_registry
from fedmed_simulations.rehearsal.machines import Machine, free_ports, wait_for

Start = Callable[[SiteFolder], Machine]


def test_all_is_well(coordinator: Any, capsys: pytest.CaptureFixture[str]) -> None:
    home = coordinator.join()
    assert run(root_command(), ["site", "check", "--home", str(home.path)]) == 0
    out = capsys.readouterr().out
    assert [line.split()[0] for line in out.splitlines()] == [
        "files",
        "certificate",
        "name",
        "connection",
        "coordinator",
    ]


def test_a_check_does_not_disturb_the_link_that_runs(coordinator: Any, start: Start) -> None:
    home = coordinator.join()
    link = start(home)
    wait_for(lambda: coordinator.state(home).state == "connected", "the link connects", 60, [link])
    boot = coordinator.state(home).boot
    wait_for(lambda: "connected" in home.status_file.read_text(), "the link says so", 20, [link])
    assert diagnose.check(home)[-1].said == "the site runs, and its link says: connected"
    assert (coordinator.state(home).boot, coordinator.state(home).refusal) == (boot, None)


def test_unregistered(coordinator: Any) -> None:
    home = coordinator.join(certify_it=False)
    certify_anew(coordinator, home)
    expect(home, errors.NotRegistered, f"does not know the site '{home.path.name}'")


def test_revoked(coordinator: Any) -> None:
    home = coordinator.join()
    coordinator.revoke(home)
    expect(home, errors.Revoked, f"has revoked the site '{home.path.name}'")


@pytest.mark.parametrize(("seconds", "told"), [(300, "300 seconds ahead of"), (-300, "300 seconds behind")])
def test_clock_off(seconds: int, told: str, coordinator: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    home, real = coordinator.join(), time.time
    monkeypatch.setattr(time, "time", lambda: real() + seconds)
    expect(home, errors.ClockOff, told)


def test_another_version(coordinator: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    home = coordinator.join()
    for module in (signed_requests, problems):
        monkeypatch.setattr(module, "installed_version", lambda: "9.9.9")
    expect(home, errors.VersionMismatch, "this site 9.9.9", "server runs fedmed")


def test_a_key_in_use(coordinator: Any, start: Start, tmp_path: Path) -> None:
    home = coordinator.join()
    link = start(home)
    wait_for(lambda: coordinator.state(home).state == "connected", "the link connects", 60, [link])
    copy = tmp_path / home.path.name
    shutil.copytree(home.path, copy, ignore=shutil.ignore_patterns("instance", "run", "status.json"))
    expect(SiteFolder(copy), errors.KeyInUse, "another machine is connected")


def test_a_key_that_is_not_the_registered_one(coordinator: Any) -> None:
    home = coordinator.join()
    sites = load_registry(coordinator.home.registry)
    home.key_file.unlink()
    identity.save_key(home.key_file, identity.new_key())
    certify_anew(coordinator, home)
    save_registry(coordinator.home.registry, sites)
    expect(home, errors.IdentityRefused, "refuses this site's signature")


def test_the_command_ends_with_the_problems_code(
    home: SiteFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    closed = at(home, free_ports(1)[0])
    assert run(root_command(), ["site", "check", "--home", str(closed.path)]) == errors.Unreachable.exit_code
    said = capsys.readouterr()
    assert "error: the coordinator's server cannot be reached" in said.err
    assert run(root_command(), ["site", "check", "--json", "--home", str(closed.path)]) == 18
    document = json.loads(capsys.readouterr().out)
    assert document["exit_code"] == 18
    assert [(step["step"], step["ok"], step["code"]) for step in document["steps"]] == [
        ("files", True, ""),
        ("certificate", True, ""),
        ("name", True, ""),
        ("connection", False, "unreachable"),
    ]


def test_every_kind_is_documented_and_has_a_code_of_its_own() -> None:
    kinds = [
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, ConnectionProblem) and kind is not ConnectionProblem
    ]
    assert len({kind.exit_code for kind in kinds}) == len(kinds) == 14
    page = (Path(__file__).parents[4] / "docs" / "connecting.md").read_text()
    rows = dict(line.strip("| ").split(" | ", 1) for line in page.splitlines() if line[:3] in ("| 1", "| 2"))
    assert sorted(rows) == sorted(str(kind.exit_code) for kind in kinds)
