"""The coordinator's commands: what they print for programs, what for people, and what they refuse."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedmed_common import children
from fedmed_common.cli import root_command, run
from fedmed_server import history
from fedmed_server.deployment import live, runs
from fedmed_server.deployment.home import ServerHome
from fedmed_server.deployment.site_states import Refusal, SiteState, moment, save_site_states
from fedmed_server.folders import locked
from fedmed_server.history import RoundDone, RunEnded, RunStarted, SiteResult

Say = Callable[..., tuple[int, str, str]]


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str], home: ServerHome, monkeypatch: pytest.MonkeyPatch) -> Say:
    """Runs a command line: exit code, what it printed, what it complained of."""
    monkeypatch.setenv("FEDMED_HOME", str(home.path))
    monkeypatch.setenv("COLUMNS", "160")

    def line(*words: str) -> tuple[int, str, str]:
        code = run(root_command(), list(words))
        return code, *capsys.readouterr()

    return line


def _document(answer: tuple[int, str, str]) -> Any:
    assert (answer[0], answer[2]) == (0, "")
    return json.loads(answer[1])


def _begun(folder: Path) -> None:
    late = SiteResult(site="beta", outcome="late", code="deadline")
    for record in (
        RunStarted(time="t", run_id="r", sites=(), command="", environment={}, parameters=1),
        RoundDone(
            time="t", round=1, attempt=0, train=(SiteResult(site="alpha"), late), seconds={"total": 1.0},
            criterion=0.5, is_best=True,
        ),
    ):  # fmt: skip
        history.append(folder / history.FILE, record)


def test_a_launch_for_programs(say: Say, experiment_file: Path, home: ServerHome) -> None:
    said = _document(say("launch", str(experiment_file), "--json"))
    assert sorted(said) == ["approval", "folder", "run", "sites"]
    assert said["sites"] == ["alpha", "beta"]
    assert runs.load(home.run(said["run"])).sites == ("alpha", "beta")
    chosen = _document(say("launch", str(experiment_file), "--sites", "beta", "--json"))
    assert chosen["sites"] == ["beta"]
    assert chosen["approval"] == said["approval"]


def test_a_launch_for_people_says_what_comes_next(say: Say, experiment_file: Path) -> None:
    code, out, _ = say("launch", str(experiment_file))
    assert code == 0
    assert "for alpha, beta" in out
    assert "fedmed serve --home" in out


@pytest.mark.parametrize(
    ("change", "options", "words"),
    [
        (("", ""), ("--sites", "alpa"), ("--sites: unknown name 'alpa'", "did you mean 'alpha'?")),
        (("", ""), ("--sites", "gamma"), ("--sites: site 'gamma' is revoked", "fix:")),
        (("", ""), ("--sites", ""), ("federation.minimum_sites", "fix:")),
        (("rounds = 3", "rounds = 3\nrecipe.name = 'fedagv'"), (), ("recipe.name", "did you mean 'fedavg'?")),
        (("rounds = 3", "rounds = 3\nfederation.minimum_sites = 3"), (), ("needs 3 sites, and 2", "fix:")),
        (("rounds = 3", "rounds = 3\nrouns = 3"), (), ("rouns", "'rounds'")),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_written(
    say: Say, experiment_file: Path, home: ServerHome, change: tuple[str, str], options: tuple[str, ...],
    words: tuple[str, ...],
) -> None:  # fmt: skip
    experiment_file.write_text(experiment_file.read_text().replace(*change))
    code, out, complaint = say("launch", str(experiment_file), *options)
    assert (code, out) == (2, "")
    assert all(word in complaint for word in words)
    assert list(home.runs.iterdir()) == []


def test_a_folder_that_is_no_server_is_named(say: Say, tmp_path: Path) -> None:
    code, _, complaint = say("status", "--home", str(tmp_path))
    assert code == 2
    assert "server.toml" in complaint
    assert "--home or FEDMED_HOME" in complaint


def test_a_simulations_own_table_stays_here(say: Say, experiment_file: Path, home: ServerHome) -> None:
    experiment_file.write_text(experiment_file.read_text() + '[simulation]\nfederation = "/data/hospitals"\n')
    said = _document(say("launch", str(experiment_file), "--json"))
    folder = home.run(said["run"])
    assert "/data/hospitals" in (folder / runs.EXPERIMENT).read_text()
    assert b"hospitals" not in (folder / runs.BUNDLE).read_bytes()
    assert runs.experiment_of(folder).simulation is None


def test_the_status_of_a_run_for_programs(say: Say, launch: Callable[..., Path], home: ServerHome) -> None:
    folder = launch()
    assert [one["state"] for one in _document(say("status", "--json"))] == ["waiting"]
    _begun(folder)
    unevaluated = RoundDone(time="t", round=2, attempt=0, train=(), seconds={"total": 1.0})
    history.append(folder / history.FILE, unevaluated)
    told = live.Live(folder, 3)
    told.watch("alpha", "ok")
    told.watch("beta", "late")
    told.flush()
    save_site_states(
        home.site_states, {"alpha": SiteState(state="connected"), "beta": SiteState(state="away")}
    )
    children.write_pid(home.path, "serve")
    with locked(folder):
        said = _document(say("status", folder.name, "--json"))
    since = [site.pop("since") for site in said["sites"]]
    assert all(since)
    assert said == {
        "run": folder.name,
        "experiment": "discs",
        "state": "running",
        "status": "",
        "round": 2,
        "rounds": 3,
        "best_round": 1,
        "criterion": 0.5,
        "restarts": 0,
        "report": "",
        "sites": [
            {"site": "alpha", "connection": "connected", "phase": "ok", "answered": 1, "asked": 1, "problem": ""},
            {
                "site": "beta", "connection": "away", "phase": "late", "answered": 0, "asked": 1,
                "problem": "beta: late (deadline)",
            },
        ],
    }  # fmt: skip


def test_the_status_of_a_run_for_people(say: Say, launch: Callable[..., Path]) -> None:
    folder = launch()
    _begun(folder)
    code, out, _ = say("status")
    assert code == 0
    assert "1/3" in out
    with locked(folder):
        _, out, _ = say("status", folder.name)
    assert "running" in out
    assert "1 of 3 rounds done" in out
    assert "beta: late (deadline)" in out


@pytest.mark.parametrize(
    ("file", "words"),
    [
        (runs.LAUNCH, "not the folder of a launched run"),
        (runs.EXPERIMENT, "experiment.toml: cannot be read"),
        (history.FILE, "ValidationError"),
    ],
)
def test_a_damaged_run_hides_no_other(file: str, words: str, say: Say, launch: Callable[..., Path]) -> None:
    good, bad = launch(), launch(name="rings")
    (bad / file).write_text("{}\n")
    said = {one["run"]: one for one in _document(say("status", "--json"))}
    assert {name: one["state"] for name, one in said.items()} == {good.name: "waiting", bad.name: "damaged"}
    assert words in said[bad.name]["status"]
    code, out, _ = say("status")
    assert code == 0
    assert good.name in out
    assert "damaged" in out


def test_a_runs_states(say: Say, launch: Callable[..., Path], home: ServerHome) -> None:
    folder = launch()

    def state() -> str:
        return str(_document(say("status", folder.name, "--json"))["state"])

    assert state() == "waiting"
    children.write_pid(home.path, "serve")
    assert state() == "starting"
    with locked(folder):
        assert state() == "gathering"
        _begun(folder)
        assert state() == "running"
        assert _document(say("stop", folder.name, "--json")) == {"run": folder.name, "wanted": "stop"}
        assert state() == "stopping"
    assert state() == "interrupted"
    assert _document(say("resume", folder.name, "--json")) == {"run": folder.name, "wanted": "run"}
    say("stop", folder.name)
    code, out, _ = say("resume", folder.name)
    assert code == 0
    assert "goes on as soon as the server runs" in out
    assert state() == "starting"
    for status in ("failed: too few", "degraded: beta", "completed"):
        history.append(folder / history.FILE, RunEnded(time="t", status=status, best_round=1))
        assert state() == status.partition(":")[0]
    code, _, complaint = say("stop", folder.name)
    assert code == 2
    assert "has ended: completed" in complaint


def test_sites_for_programs(say: Say, home: ServerHome) -> None:
    seen = moment(time.time())
    state = SiteState(
        state="refused", version="0.1.0", last_seen=seen, clock_skew_seconds=90.5,
        refusal=Refusal(code="clock", time=seen),
    )  # fmt: skip
    save_site_states(home.site_states, {"alpha": state})
    said = {site["site"]: site for site in _document(say("sites", "--json"))}
    assert {name: site["connection"] for name, site in said.items()} == {
        "alpha": "refused", "beta": "never", "gamma": "revoked",
    }  # fmt: skip
    expires, left = said["alpha"].pop("certificate_expires"), said["alpha"].pop("certificate_days_left")
    assert (expires[:2], left > 0) == ("20", True)
    assert said["alpha"] == {
        "site": "alpha", "connection": "refused", "version": "0.1.0", "last_seen": seen,
        "clock_skew_seconds": 90.5, "refused": "clock", "refused_at": seen,
    }  # fmt: skip


def test_sites_for_people(say: Say, home: ServerHome) -> None:
    state = SiteState(state="refused", refusal=Refusal(code="revoked", time=moment(time.time())))
    save_site_states(home.site_states, {"gamma": state})
    code, out, _ = say("sites")
    assert code == 0
    assert all(word in out for word in ("alpha", "never", "revoked, 0 s ago", "days left"))


def test_the_log_is_printed_and_followed_to_the_end(say: Say, launch: Callable[..., Path]) -> None:
    folder = launch()
    (folder / runs.LOG).write_text("round 1\n")
    assert say("log", folder.name) == (0, "round 1\n", "")

    def go_on() -> None:
        time.sleep(0.5)
        with (folder / runs.LOG).open("a") as log:
            log.write("round 2\n")
        history.append(folder / history.FILE, RunEnded(time="t", status="completed", best_round=1))

    thread = threading.Thread(target=go_on)
    thread.start()
    assert say("log", folder.name, "--follow") == (0, "round 1\nround 2\n", "")
    thread.join()


def test_the_log_is_followed_past_the_end_of_the_rounds(say: Say, launch: Callable[..., Path]) -> None:
    folder = launch()
    held = threading.Event()

    def go_on() -> None:
        with locked(folder):
            history.append(folder / history.FILE, RunEnded(time="t", status="completed", best_round=1))
            held.set()
            time.sleep(1.0)
            (folder / runs.LOG).write_text("completed\n")

    thread = threading.Thread(target=go_on)
    thread.start()
    held.wait()
    assert say("log", folder.name, "--follow") == (0, "completed\n", "")
    thread.join()


def test_the_log_of_an_interrupted_run_has_an_end(say: Say, launch: Callable[..., Path]) -> None:
    folder = launch()
    (folder / runs.LOG).write_text("stopped\n")
    runs.ask_to_stop(folder)
    history.append(folder / history.FILE, RunEnded(time="t", status="interrupted", best_round=0))
    assert say("log", folder.name, "--follow") == (0, "stopped\n", "")


def test_the_log_for_programs(say: Say, launch: Callable[..., Path]) -> None:
    folder = launch()
    _begun(folder)
    code, out, _ = say("log", folder.name, "--json")
    assert code == 0
    assert [json.loads(line)["kind"] for line in out.splitlines()] == ["started", "round"]


def test_a_run_that_nobody_launched(say: Say) -> None:
    for command in ("status", "log", "stop"):
        code, _, complaint = say(command, "nothing")
        assert code == 2
        assert "no run is called 'nothing'" in complaint
        assert "fix: 'fedmed status' lists the runs" in complaint
