"""The two commands that draw again what a run's folder tells."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedmed_common.cli import root_command, run

MakeRun = Callable[..., Any]


def test_report_is_drawn_again(make_run: MakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_run(rounds=1).all()
    assert run(root_command(), ["report", str(folder)]) == 0
    assert (folder / "report.html").is_file()
    assert "report.html" in capsys.readouterr().out


def test_store_is_caught_up(make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_run(rounds=1, shares={"liver": 1.0}).all()
    store = tmp_path / "elsewhere.db"
    assert run(root_command(), ["track", str(folder), "--uri", f"sqlite:///{store}"]) == 0
    assert "3 new records" in capsys.readouterr().out
    with sqlite3.connect(store) as connection:
        assert connection.execute("select count(*) from metrics").fetchone()[0] > 0
    connection.close()
    assert run(root_command(), ["track", str(folder), "--uri", f"sqlite:///{store}"]) == 0
    assert "0 new records" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["report", "track"])
def test_folder_that_is_no_run_is_one_clear_error(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(root_command(), [command, str(tmp_path)]) == 2
    assert "experiment.toml" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
