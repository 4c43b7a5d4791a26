"""What every test may ask for."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedmed_common import cli

for variable, value in cli.ENVIRONMENT.items():
    os.environ.setdefault(variable, value)

_LONG = ("deployment", "federation")
"""Folders whose few tests take longest: begun last, they would run when all else has ended."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long tests first."""
    here = Path(__file__).parent
    items.sort(key=lambda item: item.path.relative_to(here).parts[0] not in _LONG)


@pytest.fixture(scope="module", autouse=True)
def _closed_cohorts() -> Iterator[None]:
    """What simulations in this process map is closed: with over 1,024 open files, pynetdicom's select refuses a socket."""
    yield
    if "fedmed_client.workbench" in sys.modules:
        from fedmed_client.workbench import COHORTS

        COHORTS.forget()


@pytest.fixture(scope="session")
def fedmed_data() -> Path:
    """The folder of real data: FEDMED_DATA, or shared/data beside the repository."""
    beside = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("FEDMED_DATA") or beside)
    if not folder.is_dir():
        pytest.skip(f"no real data: {folder} is not a folder; set FEDMED_DATA")
    return folder
