"""The file for Ray's cluster launcher: what Ray itself takes for one, and what the pages say of it."""

from __future__ import annotations

import subprocess
from typing import Any

import pytest
import yaml

from fedmed_common.cli import ENVIRONMENT

from .conftest import DEPLOY, ROOT, output, tool

FILE: dict[str, Any] = yaml.safe_load((DEPLOY / "ray" / "cluster.yaml").read_text())
COMMANDS = [command for name, lines in FILE.items() if name.endswith("_commands") for command in lines]
STARTS = [command for command in COMMANDS if "ray start" in command]


def test_ray_takes_the_file_and_fills_it_in() -> None:
    util = pytest.importorskip("ray.autoscaler._private.util", reason="the ray extra is not installed")
    whole = util.prepare_config(FILE)
    util.validate_config(whole)
    assert whole["available_node_types"]["sites"]["max_workers"] == FILE["max_workers"]
    with pytest.raises(Exception, match="unknown_key"):
        util.validate_config(util.prepare_config(FILE | {"unknown_key": 1}))


def test_machines_come_with_demand_and_no_site_works_on_the_head() -> None:
    kinds = FILE["available_node_types"]
    assert kinds[FILE["head_node_type"]]["resources"] == {"CPU": 0}
    assert kinds["sites"]["min_workers"] == 0 < kinds["sites"]["max_workers"]


def test_every_machine_is_started_with_a_word_and_calls_nobody() -> None:
    assert len(STARTS) == 2
    assert all("RAY_AUTH_MODE=token" in start and "--disable-usage-stats" in start for start in STARTS)
    assert ENVIRONMENT["RAY_USAGE_STATS_ENABLED"] == "0"
    assert [*FILE["file_mounts"]] == ["~/.ray/auth_token"]


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_are_shell(command: str) -> None:
    subprocess.run(["bash", "-n", "-c", command], check=True)
    script = f"#!/bin/bash\nRAY_HEAD_IP=$1\n{command}\n"
    checked = subprocess.run(
        [tool("shellcheck"), "--exclude=SC2034", "-"],
        input=script,
        text=True,
        capture_output=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stdout


def test_options_of_ray_that_are_shown_exist() -> None:
    ray = tool("ray")
    shown = [
        line
        for page in (ROOT / "docs" / "how-to" / "cluster.md", DEPLOY / "ray" / "README.md")
        for line in page.read_text().splitlines()
        if "ray start" in line
    ]
    known = output(ray, "start", "--help")
    options = {
        word.split("=")[0] for line in (*shown, *STARTS) for word in line.split() if word.startswith("--")
    }
    assert options
    assert [option for option in sorted(options) if option not in known] == []
