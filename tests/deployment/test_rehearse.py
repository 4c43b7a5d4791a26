"""The rehearsal says what is not as it must be, and touches no folder that holds something."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from fedmed_common.cli import root_command, run
from fedmed_common.errors import ConfigError
from fedmed_server.history import RunEnded
from fedmed_simulations.rehearsal.rehearse import Rehearsed, check, rehearse_and_tell


def _rehearsed(folder: Path, status: str = "completed", **changes: object) -> Rehearsed:
    ended = RunEnded(time="2026-01-01T00:00:00+00:00", status=status, best_round=1)
    fields = {"run": folder, "ended": ended, "difference": "", "tracked": frozenset({1, 2}), "seconds": 1.0}
    return Rehearsed(**{**fields, **changes})  # type: ignore[arg-type]


def test_all_is_well_only_where_everything_is(tmp_path: Path) -> None:
    assert check(_rehearsed(tmp_path), 2) == ["there is no report"]
    (tmp_path / "report.html").touch()
    assert check(_rehearsed(tmp_path), 2) == []
    assert check(_rehearsed(tmp_path, "degraded: east missed"), 2) == [
        "the run ended 'degraded: east missed'"
    ]
    assert check(_rehearsed(tmp_path), 3) == ["MLflow lacks the rounds [3]"]
    assert (
        "a: 1 of 2 numbers differ" in check(_rehearsed(tmp_path, difference="a: 1 of 2 numbers differ"), 2)[0]
    )


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ConfigError, match="is not empty"):
        rehearse_and_tell(tmp_path, sites=2, rounds=1, patients=5, console=Console(quiet=True))
    assert run(root_command(), ["rehearse", "--folder", str(tmp_path)]) == 2
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.tex"]
