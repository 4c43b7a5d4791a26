"""Where a run's time goes: all of it is told, under the names of what was done."""

from __future__ import annotations

from pathlib import Path

import pytest
from simulated import fedmed, only_run

from fedmed_common.errors import ConfigError
from fedmed_simulations import cli
from fedmed_simulations.profiling import PAGE, phases


def test_a_run_tells_where_its_time_went(write_experiment, tmp_path: Path) -> None:
    done = fedmed("simulate", write_experiment(rounds=2), "--runs", tmp_path / "runs", "--profile")
    page = (only_run(tmp_path / "runs") / PAGE).read_text()
    assert "pyinstrument" in page
    rows = [line.split("│")[1:4] for line in done.stdout.splitlines() if line.count("│") == 4]
    told = {phase.strip(): float(seconds) for phase, seconds, _ in rows}
    total = told.pop("all")
    assert {"training: forward and backward", "evaluation", "server: checkpoint"} <= set(told)
    assert sum(told.values()) == pytest.approx(total, abs=0.01 * (len(told) + 1))


def test_the_time_of_a_call_is_that_of_the_phase_it_was_made_in() -> None:
    from pyinstrument.frame import Frame

    def frame(where: str, seconds: float, *children: Frame) -> Frame:
        file, _, function = where.partition(":")
        one = Frame(f"{function}\x00/x/{file}\x001", None)
        one.time = seconds
        for child in children:
            one.add_child(child)
        return one

    inner = frame("numpy/core.py:add", 1.0)
    tree = frame(
        "fedmed_server/rounds.py:run_round",
        10.0,
        frame("fedmed_client/app.py:_answer", 8.0, frame("fedmed_client/train.py:_gradients", 6.0, inner)),
    )
    assert phases(tree) == {
        "training: forward and backward": 6.0,
        "server: the rest": 2.0,
        "sites: the rest": 2.0,
    }


def test_only_one_process_can_be_looked_at(write_experiment, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--profile looks at one process"):
        cli.simulate(str(write_experiment()), tmp_path, engine="ray", profile=True)
    assert not list(tmp_path.glob("2*"))
