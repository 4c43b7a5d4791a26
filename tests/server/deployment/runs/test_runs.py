"""A launched run's folder, what its history tells, and what the keeper makes of both."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fedmed_common import bundle, identity
from fedmed_common.errors import CheckpointError, ConfigError
from fedmed_server import history
from fedmed_server.deployment import keeper, launcher, live, runs
from fedmed_server.deployment.flower_runtime import FlowerRun
from fedmed_server.deployment.home import ServerHome
from fedmed_server.deployment.keeper import MOST_RESTARTS, Action, decide, pause_seconds
from fedmed_server.deployment.runs import Launch, Progress
from fedmed_server.folders import is_locked, locked
from fedmed_server.history import RoundDone, RunEnded, RunStarted, SiteResult

LAUNCH = Launch(run="r", wanted="run", sites=("alpha", "beta"), command="fedmed launch", flower_runs=(1,))
RUNNING = FlowerRun(identifier=1, run="r", status="running", outcome="")
DEAD = FlowerRun(identifier=1, run="r", status="finished", outcome="failed")
DONE = FlowerRun(identifier=1, run="r", status="finished", outcome="completed")


def _history(folder: Path, *records: RunStarted | RoundDone | RunEnded) -> Progress:
    for record in records:
        history.append(folder / history.FILE, record)
    return Progress(folder).update()


def _started(after: int = 0) -> RunStarted:
    return RunStarted(
        time="t", run_id="r", resumed_from_round=after, sites=(), command="", environment={}, parameters=1
    )


def _round(number: int, *, best: bool = False) -> RoundDone:
    trained = (SiteResult(site="alpha"),)
    return RoundDone(time="t", round=number, attempt=0, train=trained, seconds={"total": 1.0}, is_best=best)


def _ended(status: str) -> RunEnded:
    return RunEnded(time="t", status=status, best_round=0)


def test_a_launched_run_is_whole(home: ServerHome, launch: Callable[..., Path]) -> None:
    folder = launch()
    signer = identity.load_signing_key(home.signing_key).public_key()
    approved = bundle.check((folder / runs.BUNDLE).read_bytes(), signer)
    assert approved.experiment.order_text() == runs.experiment_of(folder).order_text()
    assert runs.load(folder) == Launch(
        run=folder.name, wanted="run", sites=("alpha", "beta"), command="fedmed launch discs.toml"
    )
    assert runs.launched(home) == [folder]
    assert sorted(file.name for file in folder.iterdir()) == ["bundle.fab", "experiment.toml", "launch.json"]


def test_a_run_is_found_by_its_name_its_beginning_or_its_path(
    home: ServerHome, launch: Callable[..., Path]
) -> None:
    first, second = launch(), launch(name="rings")
    for folder in (first, second):
        assert runs.find(home, folder.name) == folder
        assert runs.find(home, folder.name[:-1]) == folder
        assert runs.find(home, str(folder)) == folder
    with pytest.raises(ConfigError, match="2 runs begin with '2'"):
        runs.find(home, "2")
    with pytest.raises(ConfigError, match=r"no run is called 'x'\s+fix: 'fedmed status'"):
        runs.find(home, "x")


def test_two_writers_lose_nothing_of_each_other(launch: Callable[..., Path]) -> None:
    folder = launch()

    def keeper() -> None:
        for number in range(40):
            runs.change(folder, restarts=number)

    thread = threading.Thread(target=keeper)
    thread.start()
    for wanted in ["stop", "run"] * 20:
        assert runs.change(folder, wanted=wanted).wanted == wanted
    thread.join()
    assert (runs.load(folder).restarts, runs.load(folder).wanted) == (39, "run")


def test_a_run_that_is_asked_again_forgets_its_old_failure(launch: Callable[..., Path]) -> None:
    folder = launch()
    progress = _history(folder, _started(), _round(1), _ended("failed: too few"))
    assert progress.final(runs.load(folder)) is not None
    asked = runs.ask_to_resume(folder)
    assert (asked.wanted, asked.since, asked.round) == ("run", 3, 1)
    assert progress.final(asked) is None
    again = _history(folder, _started(1), _ended("failed: too few again"))
    assert again.final(asked) is not None


def test_a_run_that_is_done_is_neither_stopped_nor_resumed(launch: Callable[..., Path]) -> None:
    folder = launch()
    _history(folder, _started(), _ended("completed"))
    with pytest.raises(CheckpointError, match="has ended: completed"):
        runs.ask_to_stop(folder)
    with pytest.raises(CheckpointError, match="launch a new run"):
        runs.ask_to_resume(folder)


def test_rounds_that_a_resume_goes_back_over_do_not_count(tmp_path: Path) -> None:
    progress = _history(tmp_path, _started(), _round(1, best=True), _round(2, best=True), _started(1))
    assert (progress.round, progress.best_round) == (1, 1)
    history.append(tmp_path / history.FILE, _round(2))
    assert (progress.update().round, progress.best_round, progress.records) == (2, 1, 5)


def test_a_damaged_launch_says_what_it_is(launch: Callable[..., Path]) -> None:
    folder = launch()
    (folder / runs.LAUNCH).write_text("{}")
    with pytest.raises(CheckpointError, match="not the folder of a launched run"):
        runs.load(folder)


def test_a_launch_that_was_killed_half_way_is_no_run(home: ServerHome, launch: Callable[..., Path]) -> None:
    folder = launch()
    folder.rename(folder.with_name(f".{folder.name}.1.tmp"))
    assert runs.launched(home) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda file: file.unlink(), "cannot be read"),
        (lambda file: file.write_text("rounds = "), "cannot be read"),
        (lambda file: file.write_text("rouns = 1\n" + file.read_text()), "rouns"),
    ],
)
def test_a_damaged_experiment_is_named(
    launch: Callable[..., Path], change: Callable[[Path], object], words: str
) -> None:
    folder = launch()
    file = folder / runs.EXPERIMENT
    change(file)
    with pytest.raises(ConfigError, match=f"{runs.EXPERIMENT}.*{words}(?s:.*)fix: "):
        runs.experiment_of(folder)


def test_a_missing_bundle_is_named(home: ServerHome, launch: Callable[..., Path]) -> None:
    folder = launch()
    (folder / runs.BUNDLE).unlink()
    with pytest.raises(CheckpointError, match=f"{runs.BUNDLE}(?s:.*)fix: "):
        runs.checked_experiment(home, folder)


def test_one_process_holds_a_run(tmp_path: Path) -> None:
    assert not is_locked(tmp_path)
    with locked(tmp_path):
        assert is_locked(tmp_path)
        with pytest.raises(CheckpointError, match="another process"), locked(tmp_path, 0.2):
            pass
    assert not is_locked(tmp_path)


@pytest.mark.parametrize(
    ("records", "launch_changes", "flower", "held", "action"),
    [
        ((), {"flower_runs": ()}, None, False, Action.start),
        ((), {}, RUNNING, False, Action.nothing),
        ((_started(),), {}, RUNNING, True, Action.nothing),
        ((_started(), _round(1)), {}, DEAD, False, Action.start),
        ((_started(), _round(1)), {}, DEAD, True, Action.nothing),
        ((_started(), _round(1)), {}, None, False, Action.start),
        ((_started(), _ended("interrupted")), {}, DEAD, False, Action.start),
        ((_started(), _ended("interrupted: no transport")), {}, DEAD, False, Action.start),
        ((_started(), _ended("failed: no quorum")), {}, DEAD, False, Action.nothing),
        ((_started(), _ended("failed: no quorum")), {}, RUNNING, False, Action.stop),
        ((_started(), _ended("failed: no quorum")), {"since": 2}, DEAD, False, Action.start),
        ((_started(), _ended("completed")), {}, DONE, False, Action.nothing),
        ((_started(), _ended("completed")), {}, RUNNING, True, Action.nothing),
        ((_started(), _ended("completed")), {}, DEAD, False, Action.start),
        ((_started(), _ended("degraded: beta")), {"restarts": MOST_RESTARTS}, DEAD, False, Action.nothing),
        ((_started(),), {"wanted": "stop"}, RUNNING, True, Action.nothing),
        ((_started(),), {"wanted": "stop"}, RUNNING, False, Action.stop),
        ((_started(),), {"wanted": "stop"}, DEAD, False, Action.record_interrupted),
        ((_started(), _ended("interrupted")), {"wanted": "stop"}, DEAD, False, Action.nothing),
        ((), {"wanted": "stop", "flower_runs": ()}, None, False, Action.record_interrupted),
        ((_started(),), {"restarts": MOST_RESTARTS}, DEAD, False, Action.give_up),
        ((_started(), _round(1)), {"restarts": MOST_RESTARTS}, DEAD, False, Action.start),
    ],
)  # fmt: skip
def test_what_a_run_needs(
    tmp_path: Path,
    records: tuple[RunStarted | RoundDone | RunEnded, ...],
    launch_changes: dict[str, object],
    flower: FlowerRun | None,
    held: bool,
    action: Action,
) -> None:
    progress = _history(tmp_path, *records)
    wanted = replace(LAUNCH, **launch_changes)  # type: ignore[arg-type]
    assert decide(wanted, progress, flower, held=held, reported=False) is action


def test_a_run_that_dies_again_and_again_is_started_less_and_less_often() -> None:
    pauses = [pause_seconds(number) for number in range(MOST_RESTARTS)]
    assert pauses[:4] == [0, 0, 0, 0]
    assert pauses == sorted(pauses)
    assert pauses[-1] == 30


def test_a_run_that_was_tried_often_enough_says_what_kept_it(launch: Callable[..., Path]) -> None:
    folder = launch()
    runs.change(folder, restarts=MOST_RESTARTS)
    for status, words in (
        ("interrupted: 1 of 2 sites", "for this: 1 of 2 sites; "),
        ("interrupted", "round 1; "),
    ):
        progress = _history(folder, _started(), _ended(status))
        assert decide(runs.load(folder), progress, DEAD, held=False, reported=False) is Action.give_up
        assert words in keeper._hopeless(runs.load(folder), progress)


def test_restarts_count_from_the_last_round(launch: Callable[..., Path]) -> None:
    folder = launch()
    counts = []
    for number in range(1, 7):
        if number == 4:
            _history(folder, _started(), _round(1))
        progress = Progress(folder).update()
        counts.append(runs.started(folder, runs.load(folder), progress, number).restarts)
    assert counts == [0, 1, 2, 0, 1, 2]
    assert runs.load(folder).flower_runs == (1, 2, 3, 4, 5, 6)


@pytest.mark.parametrize("part", [keeper, launcher])
def test_what_goes_wrong_each_time_is_said_once(
    part: Any, home: ServerHome, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    home.settings_file.write_text("no settings")
    monkeypatch.setattr(part, "_LOOP_SECONDS", 0.01)
    stop = threading.Event()
    timer = threading.Timer(0.5, stop.set)
    timer.start()
    getattr(part, part.__name__.rpartition(".")[2].title())(home.path).run(stop)
    timer.join()
    assert ["it goes on" in record.getMessage() for record in caplog.records] == [True]


def test_what_is_going_on_is_written_down(tmp_path: Path) -> None:
    told = live.Live(tmp_path, 2)
    assert live.read(tmp_path) is None
    told.watch("alpha", "asked")
    told.watch("beta", "asked")
    told.watch("alpha", "awaited")
    told.watch("alpha", "late")
    told.flush()
    now = live.read(tmp_path)
    assert now is not None
    assert {name: doing.phase for name, doing in now.sites.items()} == {"alpha": "late", "beta": "asked"}
    assert now.round == 2
    told.on_round(_round(2))
    told.flush()
    assert (live.read(tmp_path) or now).round == 3
    (tmp_path / live.FILE).write_text(json.dumps({"sites": 1}))
    assert live.read(tmp_path) is None
