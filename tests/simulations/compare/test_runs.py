"""Whole comparisons: cached, killed and resumed to the same table, and measured as any run is."""

from __future__ import annotations

import csv
import json
import math
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from simulated import FEDMED, assert_equal_weights, fedmed, only_run, start

from fedmed_common.loading import load_experiment
from fedmed_server import history
from fedmed_server.history import RoundDone, RunEnded
from fedmed_simulations.run import how_it_ended

LINES = (
    "[grid]\ntrain.learning_rate = [1e-2, 1e-4]\n"
    '[[candidates]]\nname = "focal"\nchanges = { task.loss = "dice_focal" }'
)
ARMS = ("fedavg", "pooled", "local at site-0", "local at site-1", "focal")


@pytest.fixture(scope="module")
def whole(write_comparison) -> Path:
    """A comparison that nothing interrupted: two configurations for each of five arms, two seeds."""
    file: Path = write_comparison(LINES)
    fedmed("compare", file, "--folder", file.parent / "out")
    return file


def _results(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "trial" / "comparison.json").read_text())
    return found


def _runs(file: Path) -> list[Path]:
    return sorted(
        folder for folder in (file.parent / "out" / "runs").iterdir() if (folder / "history.jsonl").exists()
    )


def _run_called(file: Path, text: str) -> Path:
    listed = fedmed("compare", file, "--folder", file.parent / "out", "--dry-run").stdout.splitlines()
    (name,) = [line.split()[1] for line in listed if line.endswith(f"  {text}")]
    return file.parent / "out" / "runs" / name


def _seconds(file: Path) -> dict[Path, int]:
    return {line: line.stat().st_mtime_ns for run in _runs(file) for line in run.rglob("*") if line.is_file()}


def test_the_table_has_every_row_and_its_files(whole: Path) -> None:
    found, folder = _results(whole.parent / "out"), whole.parent / "out" / "trial"
    assert list(found["competitors"]) == ["local", "fedavg", "focal", "pooled"]
    assert (found["seeds"], found["budget"], found["metric"]) == ([1, 2], 2, "dice")
    assert found["groups"] == {"head": ["disc"], "medium": [], "tail": ["dot"]}
    assert found["training_patients"]["disc"] > found["training_patients"]["dot"] > 0
    for name, row in found["competitors"].items():
        columns = row["columns"]
        assert set(columns) == {
            "mean", "head", "tail", "worst_site", "site_sd", "false_positives", "tail_false_positives"
        }  # fmt: skip
        assert all(len(values) == 2 for values in columns.values())
        np.testing.assert_allclose(columns["mean"], np.mean([columns["head"], columns["tail"]], axis=0))
        assert set(row["differences"]) == (set() if name == "fedavg" else set(columns))
    text = (folder / "comparison.md").read_text()
    assert all(f"| {name} |" in text for name in found["competitors"])
    for name in ("differences", "classes", "tail"):
        assert f"(figures/{name}.png)" in text
        assert (folder / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    rows = list(csv.DictReader((folder / "comparison.csv").read_text().splitlines()))
    assert [
        float(row["mean"]) for row in rows if (row["competitor"], row["column"]) == ("local", "mean")
    ] == [pytest.approx(np.mean(found["competitors"]["local"]["columns"]["mean"]))]
    sites = list(csv.DictReader((folder / "sites.csv").read_text().splitlines()))
    assert len(sites) == 4 * 2 * 2


def test_what_was_tried_is_written_down_and_the_best_validation_was_chosen(whole: Path) -> None:
    choices = json.loads((whole.parent / "out" / "trial" / "choices.json").read_text())
    assert [choice["competitor"] for choice in choices] == list(ARMS)
    for choice in choices:
        tried = {one["validation"]: one["settings"] for one in choice["tried"]}
        assert len(choice["tried"]) == 2
        assert choice["chosen"] == tried[max(tried)]


def test_runs_that_tune_have_no_test_patients_and_are_not_measured(whole: Path) -> None:
    tuning = [run for run in _runs(whole) if not (run / "test").exists()]
    assert (len(tuning), len(_runs(whole))) == (10, 20)
    for run in _runs(whole):
        lines = list(history.read(run / "history.jsonl"))
        assert lines[-1].test == {"last": (), "best": ()}
        assert all(site.patients["test"] == 0 for site in lines[0].sites)
        if run not in tuning:
            assert sorted(int(file.stem) for file in (run / "test").iterdir()) == [2, 3, 4, 5, 6]


def test_the_model_is_that_of_a_simulation_and_so_is_what_is_measured_of_it(
    whole: Path, tmp_path: Path
) -> None:
    """A comparison hides the test patients from the run and measures them itself: neither changes anything."""
    chosen = json.loads((whole.parent / "out" / "trial" / "choices.json").read_text())[0]["chosen"]
    text = (whole.parent / "discs.toml").read_text()
    rate = f"learning_rate = {chosen['train.learning_rate']}"
    file = tmp_path / "alone.toml"
    file.write_text(text.replace("learning_rate = 1e-2", rate).replace("[task]", "seed = 2\n[task]", 1))
    fedmed("simulate", file, "--runs", tmp_path / "runs")
    run, alone = _run_called(whole, "fedavg, seed 2"), only_run(tmp_path / "runs")
    assert_equal_weights(run, alone)
    *_, ended = history.read(alone / "history.jsonl")
    assert isinstance(ended, RunEnded)
    measured = json.loads((run / "test" / "6.json").read_text())
    for result in ended.test["last"]:
        patients = list(measured[result.site].values())
        assert len(patients) == result.patients or result.metrics
        for name, mean in result.means().items():
            values = [values[name] for values in patients if name in values]
            assert (math.fsum(values), len(values)) == (pytest.approx(mean.total), mean.weight)


def test_nothing_is_run_again(whole: Path) -> None:
    before, found = _seconds(whole), _results(whole.parent / "out")
    done = fedmed("compare", whole, "--folder", whole.parent / "out")
    assert {file: time for file, time in _seconds(whole).items() if file.name != ".lock"} == {
        file: time for file, time in before.items() if file.name != ".lock"
    }
    assert _results(whole.parent / "out") == found
    assert "10 of 10 runs are there already" in done.stdout
    listed = fedmed("compare", whole, "--folder", whole.parent / "out", "--dry-run").stdout
    assert listed.splitlines()[-1] == "20 done"


def test_one_more_seed_runs_that_seed_alone(whole: Path) -> None:
    dry = fedmed("compare", whole, "--folder", whole.parent / "out", "--seeds", "1,2,3", "--dry-run").stdout
    assert dry.splitlines()[-1] == "20 done, 5 to do"
    assert {line.split("  ")[-1] for line in dry.splitlines() if line.startswith("to do")} == {
        f"{arm}, seed 3" for arm in ARMS
    }


def test_other_steps_are_other_runs(whole: Path) -> None:
    experiment = whole.parent / "discs.toml"
    text = experiment.read_text()
    try:
        experiment.write_text(text.replace("steps = 2", "steps = 3"))
        dry = fedmed("compare", whole, "--folder", whole.parent / "out", "--dry-run").stdout
    finally:
        experiment.write_text(text)
    assert dry.splitlines()[-1] == "20 to do"


_KILLED_BETWEEN = """
import os, signal, sys
from fedmed_common import cli
from fedmed_simulations.compare import measured
whole = measured.measure
def measure(run, homes, experiment, state):
    if state.round == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    whole(run, homes, experiment, state)
measured.measure = measure
sys.argv = ["fedmed", "compare", *sys.argv[1:]]
cli.main()
"""


def test_killed_between_a_checkpoint_and_its_measurement_nothing_is_lost(whole: Path, tmp_path: Path) -> None:
    run = _run_called(whole, "focal, seed 2")
    again = _without(whole, tmp_path, run)
    arguments = [str(whole), "--folder", str(tmp_path)]
    died = subprocess.run(
        [sys.executable, "-c", _KILLED_BETWEEN, *arguments], capture_output=True, check=False
    )
    assert died.returncode == -signal.SIGKILL
    assert sorted(_measured(again)) == ["2.json", "3.json"]
    fedmed("compare", *arguments)
    assert _measured(again) == _measured(run)
    assert _results(tmp_path) == _results(whole.parent / "out")


def test_killed_and_resumed_gives_the_same_table(whole: Path, tmp_path: Path) -> None:
    """Killed the hard way while a tuning run trains, and again while one that counts does."""
    gone = [
        _run_called(whole, text)
        for text in ("fedavg, seed 1, tuning: train.learning_rate = 0.01", "local at site-1, seed 2")
    ]
    _without(whole, tmp_path, gone[0])
    shutil.rmtree(tmp_path / "runs" / gone[1].name)
    for again in [tmp_path / "runs" / run.name for run in gone]:
        _kill_in_a_run(whole, tmp_path, again)
    fedmed("compare", whole, "--folder", tmp_path)
    assert _results(tmp_path) == _results(whole.parent / "out")
    for run in gone:
        assert_equal_weights(run, tmp_path / "runs" / run.name)
        assert _measured(run) == _measured(tmp_path / "runs" / run.name)


def _without(file: Path, folder: Path, run: Path) -> Path:
    """A copy of the comparison's results in ``folder``, in which a run has not been begun; where it will be."""
    shutil.copytree(file.parent / "out", folder, dirs_exist_ok=True)
    shutil.rmtree(folder / "trial", ignore_errors=True)
    shutil.rmtree(folder / "runs" / run.name)
    return folder / "runs" / run.name


def _measured(run: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in run.glob("test/*")}


def _kill_in_a_run(file: Path, folder: Path, run: Path) -> None:
    """As soon as the run has done a round."""
    process = start("compare", file, "--folder", folder)
    try:
        end = time.monotonic() + 120
        while time.monotonic() < end and process.exitcode is None:
            if any(isinstance(line, RoundDone) for line in history.read(run / "history.jsonl")):
                break
            time.sleep(0.002)
        assert process.exitcode is None, "the comparison ended before it could be killed"
    finally:
        process.kill()
        process.join()
    assert process.exitcode == -signal.SIGKILL
    assert how_it_ended(run) is None


def test_a_comparison_that_is_changed_after_its_results_says_so(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole.parent / "out", tmp_path, dirs_exist_ok=True)
    fewer = whole.with_name("fewer.toml")
    fewer.write_text(whole.read_text().replace("seeds = [1, 2]", "seeds = [1]"))
    fedmed("compare", fewer, "--folder", tmp_path)
    assert not [note for note in _results(whole.parent / "out")["notes"] if "changed" in note]
    assert [note for note in _results(tmp_path)["notes"] if "has 2 versions" in note]
    assert len(_results(tmp_path)["competitors"]["fedavg"]["columns"]["mean"]) == 1


def test_ctrl_c_says_that_the_same_command_goes_on(write_comparison) -> None:
    file = write_comparison(seeds="[1]", rounds=400)
    process = subprocess.Popen(
        ["env", "--default-signal=INT", FEDMED, "compare", str(file), "--folder", str(file.parent / "out")],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        end = time.monotonic() + 120
        while time.monotonic() < end and not list(file.parent.glob("out/runs/*/state.safetensors")):
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130, output
    assert "the same command goes on" in output
    (run,) = _runs(file)
    *_, last = history.read(run / "history.jsonl")
    assert isinstance(last, RunEnded)
    assert last.status == "interrupted"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ("{ train.steps = 9 }", "candidates.x: rounds x steps x batch is 6 x 9 x 2, of the others 6 x 2 x 2"),
        (
            '{ recipe.name = "fedbuff" }',
            "candidates.x: with a buffer a round is a step with the updates of some",
        ),
        ('{ task.loss = "dice_focall" }', "candidates.x: task.loss: unknown name 'dice_focall'"),
    ],
)
def test_a_wrong_file_ends_with_the_fix_and_nothing_is_written(
    write_comparison, changes: str, told: str
) -> None:
    file = write_comparison(f'[[candidates]]\nname = "x"\nchanges = {changes}')
    done = fedmed("compare", file, "--folder", file.parent / "out", check=False)
    assert done.returncode == 2
    assert told in done.stderr
    assert "fix:" in done.stderr
    assert not (file.parent / "out").exists()


def test_the_engine_and_the_experiment_are_part_of_a_runs_name(whole: Path) -> None:
    dry = fedmed("compare", whole, "--folder", whole.parent / "out", "--engine", "ray", "--dry-run").stdout
    assert dry.splitlines()[-1] == "20 to do"
    experiment = load_experiment(_runs(whole)[0] / "experiment.toml")
    assert experiment.name == "discs"
