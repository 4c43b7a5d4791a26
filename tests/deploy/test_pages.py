"""The pages about deployment are true: what they link, run and cite is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fedmed_common.cli import COMMANDS

from .conftest import DEPLOY, ROOT

PAGES = tuple(sorted(DEPLOY.rglob("*.md")))
MORE = tuple(
    ROOT / "docs" / f"{name}.md" for name in ("for-hospital-it", "for-coordinators", "operations", "security")
)


def _name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#]+)", page.read_text())
    local = [target for target in targets if "://" not in target]
    assert [target for target in local if not (page.parent / target).exists()] == []


@pytest.mark.parametrize("page", [*PAGES, *MORE], ids=_name)
def test_commands_exist(page: Path) -> None:
    shown = re.findall(r"(?:`|bin/|-- |server |^)fedmed ([a-z]+(?: [a-z]+)?)", page.read_text(), re.MULTILINE)
    groups = {line.split()[0] for line in COMMANDS if " " in line}
    wrong = [line for line in shown if line not in COMMANDS and _first_is_wrong(line, groups)]
    assert wrong == []


def _first_is_wrong(line: str, groups: set[str]) -> bool:
    first, _, second = line.partition(" ")
    if first == "provision":
        return second not in {"", "consortium"}
    return first in groups or first not in COMMANDS


@pytest.mark.parametrize("page", [*PAGES, *MORE], ids=_name)
def test_files_that_are_named_exist(page: Path) -> None:
    named = re.findall(r"\b((?:deploy|tests|docs)/[A-Za-z0-9_./-]+\.\w+)", page.read_text())
    assert [file for file in named if not (ROOT / file).exists()] == []


@pytest.mark.parametrize("page", [*PAGES, *MORE], ids=_name)
def test_tests_that_are_cited_exist(page: Path) -> None:
    cited = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", page.read_text())
    assert [one for one in cited if f"def {one[1]}(" not in (ROOT / one[0]).read_text()] == []


def test_every_attack_of_the_threat_model_has_its_test() -> None:
    text = (ROOT / "docs" / "security.md").read_text()
    rows = [line.split("|") for line in text.splitlines() if line.count("|") == 4 and "---" not in line]
    attacks = [row for row in rows if row[1].strip() != "attack"]
    assert len(attacks) > 25
    assert [row[1].strip() for row in attacks if "::test_" not in row[3]] == []
