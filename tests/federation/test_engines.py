"""inline = ray = resumed after kill -9, on another engine too: equal weights, bit by bit."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from simulated import (
    FEDMED,
    assert_equal_weights,
    fedmed,
    is_alive,
    kill_after_round,
    only_run,
    workers_of,
)

from fedmed_common.failpoints import VARIABLE
from fedmed_server import history
from fedmed_server.history import RoundDone, RunEnded, RunStarted


def test_a_run_leaves_models_history_report_and_tracking(write_experiment, tmp_path: Path) -> None:
    done = fedmed("simulate", write_experiment(), "--runs", tmp_path / "runs")
    run = only_run(tmp_path / "runs")
    records = list(history.read(run / "history.jsonl"))
    assert [type(record) for record in records] == [RunStarted, RoundDone, RoundDone, RoundDone, RunEnded]
    assert records[-1].status == "completed"
    assert records[-1].test["best"]
    assert "completed" in done.stdout
    assert "</html>" in (run / "report.html").read_text()
    assert (tmp_path / "runs" / "mlflow.db").stat().st_size > 0


def test_ray_gives_the_weights_of_inline_also_when_an_actor_is_killed(
    write_experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray", reason="the ray extra is not installed")
    file = write_experiment(rounds=2)
    fedmed("simulate", file, "--runs", tmp_path / "inline")
    fault = {"id": "one", "point": "training", "signal": "SIGKILL", "round": 2, "site": "site-1"}
    (tmp_path / "fired").mkdir()
    (tmp_path / "plan.json").write_text(json.dumps({"faults": [fault], "fired": str(tmp_path / "fired")}))
    monkeypatch.setenv(VARIABLE, str(tmp_path / "plan.json"))
    done = fedmed("simulate", file, "--runs", tmp_path / "ray", "--engine", "ray", "--workers", 2)
    assert (tmp_path / "fired" / "one").exists()
    assert "the order of site 'site-1' is done again" in done.stderr
    assert "completed" in done.stdout
    assert_equal_weights(only_run(tmp_path / "inline"), only_run(tmp_path / "ray"))
    assert not (only_run(tmp_path / "ray") / ".seen-by-workers").exists()


def test_workers_end_with_their_run_however_it_ends_and_it_goes_on_elsewhere(
    write_experiment, tmp_path: Path
) -> None:
    """Killed, then interrupted in its terminal, on the process engine; ended on the inline engine: the weights of inline."""
    file, runs = write_experiment(rounds=12, steps=8), tmp_path / "runs"
    fedmed("simulate", file, "--runs", tmp_path / "whole")

    killed = ["simulate", file, "--runs", runs, "--engine", "process", "--workers", 2]
    assert end_at_work(killed, runs, 1, lambda pid: os.kill(pid, signal.SIGKILL)) == -signal.SIGKILL
    run = only_run(runs)
    assert end_at_work(["resume", run], runs, 2, lambda pid: os.killpg(pid, signal.SIGINT)) == 130
    done = fedmed("resume", run, "--engine", "inline", "--workers", 0)
    assert "completed" in done.stdout
    assert_equal_weights(only_run(tmp_path / "whole"), run)


def end_at_work(
    arguments: list[object], runs: Path, rounds: int, end: Callable[[int], None], seconds: float = 120.0
) -> int:
    """Start a command in a session of its own and end it after so many rounds; its exit code, once its two workers are gone."""
    process = subprocess.Popen(
        ["env", "--default-signal=INT", FEDMED, *map(str, arguments)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        wait_for(
            lambda: (
                sum(isinstance(r, RoundDone) for f in runs.glob("*/history.jsonl") for r in history.read(f))
                >= rounds
            ),
            seconds,
        )
        workers = workers_of(process.pid)
        end(process.pid)
        code = process.wait(60)
    finally:
        process.kill()
        process.wait()
    assert len(workers) == 2
    wait_for(lambda: not any(map(is_alive, workers)), seconds)
    return code


def wait_for(is_so: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.005)


def test_resume_after_kill_ends_bit_identical(write_experiment, tmp_path: Path) -> None:
    file = write_experiment(rounds=12, steps=8, extra="[federation]\nevaluate_every = 2")
    fedmed("simulate", file, "--runs", tmp_path / "whole")
    killed = kill_after_round(file, tmp_path / "killed", rounds=3)
    assert not (killed / "models").exists()
    fedmed("resume", killed)
    assert_equal_weights(only_run(tmp_path / "whole"), killed)
    records = list(history.read(killed / "history.jsonl"))
    assert sorted({record.round for record in records if isinstance(record, RoundDone)}) == list(range(1, 13))
    assert records[-1].status == "completed"


def test_interrupt_says_how_to_go_on_and_resume_does(write_experiment, tmp_path: Path) -> None:
    file = write_experiment(rounds=40, steps=20)
    runs = tmp_path / "runs"
    process = subprocess.Popen(
        ["env", "--default-signal=INT", FEDMED, "simulate", str(file), "--runs", str(runs)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        end = time.monotonic() + 120
        while time.monotonic() < end and not any(
            isinstance(r, RoundDone) for f in runs.glob("*/history.jsonl") for r in history.read(f)
        ):
            time.sleep(0.005)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130, output
    assert "fedmed resume" in output
    run = only_run(runs)
    last = list(history.read(run / "history.jsonl"))[-1]
    assert isinstance(last, RunEnded)
    assert last.status == "interrupted"


def test_a_finished_run_is_not_run_again(write_experiment, tmp_path: Path) -> None:
    fedmed("simulate", write_experiment(rounds=1), "--runs", tmp_path / "runs")
    run = only_run(tmp_path / "runs")
    before = (run / "history.jsonl").read_bytes()
    said = json.loads(fedmed("resume", run, "--json").stdout)
    assert said == {"run": run.name, "status": "completed"}
    assert (run / "history.jsonl").read_bytes() == before


def test_resume_refuses_what_is_not_a_run(tmp_path: Path) -> None:
    done = fedmed("resume", tmp_path, check=False)
    assert done.returncode == 2
    assert "not a run's folder" in done.stderr


def test_baselines_are_tested_on_the_same_patients(write_experiment, tmp_path: Path) -> None:
    done = fedmed(
        "simulate",
        write_experiment(rounds=1, extra="[federation]\nminimum_sites = 3"),
        "--runs",
        tmp_path / "runs",
        "--baseline",
        "pooled",
        "--baseline",
        "local",
    )
    assert "pooled" in done.stdout
    ended = {
        folder.name.partition(".")[2]: list(history.read(folder / "history.jsonl"))[-1]
        for folder in (tmp_path / "runs").iterdir()
        if (folder / "history.jsonl").exists()
    }
    assert set(ended) == {"", "pooled", "local.site-0", "local.site-1", "local.site-2"}
    tested = {result.site: result.patients for result in ended[""].test["best"]}
    assert tested == {result.site: result.patients for result in ended["pooled"].test["best"]}
    for site, patients in tested.items():
        (alone,) = ended[f"local.{site}"].test["best"]
        assert (alone.site, alone.patients) == (site, patients)
    run = next(folder for folder in (tmp_path / "runs").iterdir() if (folder / "comparison.json").exists())
    assert set(json.loads((run / "comparison.json").read_bytes())) == {"federated", "pooled", "local"}
    report = (run / "report.html").read_text(encoding="utf-8")
    assert "Beside its baselines" in report
    sent = [
        file.read_text(encoding="utf-8") for file in (tmp_path / "runs").rglob("mlartifacts/**/report.html")
    ]
    assert report in sent


def test_a_site_that_refuses_is_named_and_the_run_is_degraded_or_fails(
    write_experiment, tmp_path: Path
) -> None:
    file = write_experiment(rounds=1, extra="[federation]\nquorum = 0.5")
    text = file.read_text()
    last = text.rindex("least_patients = 1")
    file.write_text(text[:last] + "maximum_steps = 1, " + text[last:])
    done = fedmed("simulate", file, "--runs", tmp_path / "runs", check=False)
    assert done.returncode != 0
    assert "site-2" in done.stderr
    assert "maximum_steps" in done.stderr


def test_resume_goes_on_with_the_baselines(write_experiment, tmp_path: Path) -> None:
    fedmed("simulate", write_experiment(rounds=1), "--runs", tmp_path / "runs", "--baseline", "pooled")
    (run,) = [folder for folder in (tmp_path / "runs").iterdir() if (folder / "comparison.json").exists()]
    comparison = (run / "comparison.json").read_bytes()
    shutil.rmtree(run.with_name(f"{run.name}.pooled"))
    (run / "comparison.json").unlink()
    (run / "report.html").unlink()
    fedmed("resume", run)
    assert (run / "comparison.json").read_bytes() == comparison
    assert "Beside its baselines" in (run / "report.html").read_text()


def test_a_seed_beyond_what_an_experiment_can_hold_writes_nothing(write_experiment, tmp_path: Path) -> None:
    done = fedmed("simulate", write_experiment(), "--runs", tmp_path / "runs", "--seed", 2**63, check=False)
    assert done.returncode == 2
    assert "--seed" in done.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="the order could be carried out on this machine's GPU")
def test_a_sites_own_error_is_told_where_the_sites_are_the_researchers(
    write_experiment, tmp_path: Path
) -> None:
    file = write_experiment(rounds=1, sites=2, extra='device = "cuda"')
    ended = fedmed("simulate", file, "--runs", tmp_path / "runs", check=False)
    assert ended.returncode == 1
    assert ended.stdout.count("train.device: 'cuda' is not there") == 2
