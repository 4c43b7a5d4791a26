"""The container images: linted, pinned, closed, and with all that the code in them imports."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from fedmed_common.cli import COMMANDS

from .conftest import DEPLOY, ROOT, output, tool

IMAGES = DEPLOY / "images"
ROLES = ("server", "site")
FOLDERS = {
    "server": {"common", "strategies", "client", "server", "simulations"},
    "site": {"common", "strategies", "client"},
}
INSTRUCTION = re.compile(r"^([A-Z]+) (.*)$", re.MULTILINE)


def dockerfile(role: str) -> str:
    """The file with its continued lines joined."""
    return (IMAGES / f"{role}.Dockerfile").read_text().replace("\\\n", " ")


def instructions(role: str, *, last_stage: bool = False) -> list[tuple[str, str]]:
    found = [(match[1], match[2]) for match in INSTRUCTION.finditer(dockerfile(role))]
    begin = max(number for number, (name, _) in enumerate(found) if name == "FROM") if last_stage else 0
    return found[begin:]


def locked(role: str) -> set[str]:
    text = (IMAGES / f"{role}.lock").read_text()
    return {_plain(name) for name in re.findall(r"^([A-Za-z0-9._-]+)==", text, re.MULTILINE)}


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _project() -> dict[str, object]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.mark.parametrize("role", ROLES)
def test_hadolint_finds_nothing(role: str) -> None:
    assert output(tool("hadolint"), "--failure-threshold", "style", IMAGES / f"{role}.Dockerfile") == ""


@pytest.mark.parametrize("role", ROLES)
def test_the_base_is_pinned_by_version_and_digest_in_both_stages(role: str) -> None:
    pinned = r"PYTHON_IMAGE=python:3\.\d+\.\d+-slim-[a-z]+@sha256:[0-9a-f]{64}"
    assert re.fullmatch(pinned, instructions(role)[0][1])
    stages = [value for name, value in instructions(role) if name == "FROM"]
    assert stages == ["${PYTHON_IMAGE} AS build", "${PYTHON_IMAGE}"]


@pytest.mark.parametrize("role", ROLES)
def test_an_image_runs_as_nobody_in_particular_and_tells_how_it_is(role: str) -> None:
    last = instructions(role, last_stage=True)
    names = [name for name, _ in last]
    assert dict(last)["USER"] == "10001:10001"
    assert names.index("USER") < names.index("ENTRYPOINT")
    assert not {"ADD", "EXPOSE"} & set(names) - ({"EXPOSE"} if role == "server" else set())
    health = re.search(r"CMD (\[.*\])", dict(last)["HEALTHCHECK"])
    assert health is not None
    line = " ".join(ast.literal_eval(health[1])[1:])
    start = " ".join(ast.literal_eval(dict(last)["CMD"]))
    assert {line, start} <= COMMANDS.keys()


@pytest.mark.parametrize("role", ROLES)
def test_the_context_holds_what_is_copied_and_nothing_else(role: str) -> None:
    ignored = (IMAGES / f"{role}.Dockerfile.dockerignore").read_text().split()
    assert ignored[0] == "*"
    permitted = {line[1:] for line in ignored if line.startswith("!")}
    copied = {
        word
        for name, value in instructions(role)
        if name == "COPY" and not value.startswith("--from")
        for word in value.split()[:-1]
    }
    folders = {word for word in copied if (ROOT / word).is_dir()}
    assert folders == FOLDERS[role]
    assert {word for word in copied if not word.endswith(".lock")} == permitted - {"deploy/images/*.lock"}
    assert all((ROOT / word).exists() for word in copied)


@pytest.mark.parametrize("role", [*ROLES, "inventory"])
def test_every_locked_version_has_its_hash(role: str) -> None:
    text = (IMAGES / f"{role}.lock").read_text()
    blocks = re.split(r"^(?=[A-Za-z0-9])", text, flags=re.MULTILINE)[1:]
    assert [block.split()[0] for block in blocks if "--hash=sha256:" not in block] == []


def test_locks_have_no_pytorch_and_no_installer() -> None:
    assert {"torch", "uv", "pip"} & (locked("site") | locked("server")) == set()


def test_a_site_installs_less_than_the_server_and_the_same_versions() -> None:
    lines = {
        role: set(re.findall(r"^\S+==\S+", (IMAGES / f"{role}.lock").read_text(), re.MULTILINE))
        for role in ROLES
    }
    assert lines["site"] < lines["server"]
    assert not {"mlflow", "matplotlib", "pandas", "gunicorn"} & locked("site")


def test_what_a_site_asks_for_is_what_the_project_asks_for() -> None:
    project = _project()
    extras = project["optional-dependencies"]
    asked = {*project["dependencies"]}.union(
        *(extras[name] for name in ("decoders", "deidentify", "harmonise", "transformers", "multigpu"))
    )
    assert set((IMAGES / "site.in").read_text().split()) <= asked


@pytest.mark.parametrize("role", ROLES)
def test_what_is_locked_is_what_the_project_permits(role: str) -> None:
    pinned = dict(re.findall(r"^(\S+)==(\S+)", (IMAGES / f"{role}.lock").read_text(), re.MULTILINE))
    versions = {_plain(name): version for name, version in pinned.items()}
    wanted = [Requirement(line) for line in _project()["dependencies"]]
    if role == "server":
        assert {_plain(one.name) for one in wanted} - versions.keys() == {"torch"}
    both = [(one, versions[_plain(one.name)]) for one in wanted if _plain(one.name) in versions]
    assert [f"{one} {version}" for one, version in both if version not in one.specifier] == []


@pytest.mark.parametrize("role", ROLES)
def test_what_the_code_imports_is_installed(role: str) -> None:
    homes = packages_distributions()
    installed = locked(role) | {"torch"}
    missing = {
        f"{file.relative_to(ROOT)}: {module}"
        for folder in FOLDERS[role]
        for file in (ROOT / folder).rglob("*.py")
        for module in _imported(file)
        if not {_plain(home) for home in homes.get(module, [])} & installed
    }
    assert missing - OPTIONAL == set()


OPTIONAL = {
    "simulations/fedmed_simulations/profiling.py: pyinstrument",
    "simulations/fedmed_simulations/engines.py: ray",
    "simulations/fedmed_simulations/workers/ray_actors.py: ray",
    "common/fedmed_common/models/export.py: onnxscript",
}
"""Imports of an extra that no image has."""


def _imported(file: Path) -> Iterator[str]:
    """Top-level names of packages that are neither Python's nor ours."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module or ""]
        else:
            continue
        tops = {name.partition(".")[0] for name in names}
        yield from (top for top in tops - sys.stdlib_module_names if not top.startswith("fedmed_"))


def test_the_lock_script_is_clean() -> None:
    output(tool("shellcheck"), IMAGES / "lock.sh")
