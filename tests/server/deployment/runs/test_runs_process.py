"""Launched runs with the real SuperLink and real ServerApp processes; no site ever comes, so each run waits at its roll call."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from fedmed_common import children
from fedmed_server.deployment import runs, superlink
from fedmed_server.deployment.flower_client import SuperLinkAway
from fedmed_server.deployment.flower_runtime import FlowerControl
from fedmed_server.deployment.home import ServerHome
from fedmed_server.deployment.keeper import MOST_RESTARTS, Keeper
from fedmed_server.deployment.launcher import Launcher
from fedmed_server.deployment.runs import Progress
from fedmed_server.folders import is_locked
from fedmed_server.provision.registry import load_registry, save_registry


def _until(condition: Callable[[], bool], seconds: float = 90.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


@contextmanager
def _superlink(home: ServerHome) -> Iterator[subprocess.Popen[bytes]]:
    command = (sys.executable, "-m", "fedmed_server.deployment.superlink", str(home.path))
    process = children.start(command, log=home.log / "superlink.log")
    try:
        _until(lambda: _answers(home))
        yield process
    finally:
        children.stop(process, 5.0)


def _answers(home: ServerHome) -> bool:
    try:
        control = FlowerControl(home)
        control.unfinished()
        control.close()
    except SuperLinkAway:
        return False
    return True


@contextmanager
def _parts(home: ServerHome) -> Iterator[None]:
    """The keeper and the launcher, as 'fedmed serve' runs them."""
    stop = threading.Event()
    threads = [
        threading.Thread(target=part.run, args=(stop,)) for part in (Keeper(home.path), Launcher(home.path))
    ]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


@pytest.fixture(autouse=True)
def _environment(home: ServerHome, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in superlink.environment(home).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")


def _serverapp(home: ServerHome, other_than: int = 0) -> int:
    file = children.pid_file(home.path, "serverapp")

    def is_there() -> bool:
        return file.exists() and int(file.read_text()) != other_than

    _until(is_there)
    return int(file.read_text())


def _status(folder: Path) -> str:
    end = Progress(folder).update().end
    return end.status if end else ""


def test_a_killed_serverapp_is_started_again_and_a_stop_ends_it(
    home: ServerHome, launch: Callable[..., Path]
) -> None:
    folder = launch()
    with _superlink(home), _parts(home):
        first = _serverapp(home)
        _until(lambda: is_locked(folder))
        os.kill(first, signal.SIGKILL)
        second = _serverapp(home, first)
        _until(lambda: is_locked(folder))
        assert len(runs.load(folder).flower_runs) == 2
        assert runs.load(folder).restarts == 1
        runs.ask_to_stop(folder)
        _until(lambda: _status(folder) == "interrupted")
        _until(lambda: not Path(f"/proc/{second}").exists())
        control = FlowerControl(home)
        _until(lambda: control.unfinished() == [])
        control.close()
        assert not is_locked(folder)
        assert len(runs.load(folder).flower_runs) == 2


def test_a_run_goes_on_after_the_server_was_away(home: ServerHome, launch: Callable[..., Path]) -> None:
    folder = launch()
    with _parts(home):
        with _superlink(home) as process:
            _serverapp(home)
            _until(lambda: is_locked(folder))
            process.kill()
            process.wait()
        with _superlink(home):
            _until(lambda: is_locked(folder))
    assert _status(folder) == "interrupted"
    assert runs.load(folder).wanted == "run"
    with _superlink(home), _parts(home):
        _until(lambda: is_locked(folder))
        runs.ask_to_stop(folder)
        _until(lambda: Progress(folder).update().records == 2)
    assert _status(folder) == "interrupted"


def test_a_run_does_not_wait_for_revoked_sites_and_is_tried_again_with_those_that_are_back(
    home: ServerHome, launch: Callable[..., Path]
) -> None:
    folder = launch()
    registered = load_registry(home.registry)
    gone = {
        name: replace(registered[name], revoked="2026-01-01T00:00:00+00:00") for name in ("alpha", "beta")
    }
    with _superlink(home), _parts(home):
        _until(lambda: is_locked(folder))
        save_registry(home.registry, registered | gone)
        _until(lambda: runs.load(folder).restarts >= 1)
        assert _status(folder) == (
            "interrupted: the roll call: 0 of 2 sites take part, 2 are needed. alpha: revoked; beta: revoked"
        )
        save_registry(home.registry, registered)
        _until(lambda: is_locked(folder))
        runs.ask_to_stop(folder)
        _until(lambda: _status(folder) == "interrupted")


def test_a_run_that_cannot_be_carried_has_failed_and_holds_up_no_other(
    home: ServerHome, launch: Callable[..., Path]
) -> None:
    changed, broken, hopeless, good = (launch(name=name) for name in "abcd")
    runs.change(hopeless, restarts=MOST_RESTARTS, flower_runs=(1,))
    file = changed / runs.EXPERIMENT
    file.write_text(file.read_text().replace("rounds = 3", "rounds = 4"))
    (broken / runs.BUNDLE).write_bytes(b"no bundle")
    with _superlink(home), _parts(home):
        _until(lambda: is_locked(good))
    assert "was changed after the launch" in _status(changed)
    assert _status(broken) == "failed: the run's bundle is refused: tampered bundle"
    assert _status(hopeless).startswith("failed: the ServerApp ended 20 times without finishing round 1")
    assert [runs.load(folder).flower_runs for folder in (changed, broken)] == [(), ()]


def test_a_flower_run_that_was_begun_and_not_noted_is_no_reason_for_another(
    home: ServerHome, launch: Callable[..., Path]
) -> None:
    folder = launch()
    stop, keeper = threading.Event(), Keeper(home.path)
    with _superlink(home):
        control = FlowerControl(home)
        begun = control.start((folder / runs.BUNDLE).read_bytes(), folder.name)
        thread = threading.Thread(target=keeper.run, args=(stop,))
        thread.start()
        try:
            _until(lambda: runs.load(folder).flower_runs == (begun,))
            assert [run.identifier for run in control.unfinished()] == [begun]
        finally:
            stop.set()
            thread.join()
            control.close()


def test_a_token_is_on_no_command_line(home: ServerHome, launch: Callable[..., Path]) -> None:
    launch()
    with _superlink(home), _parts(home):
        pid = _serverapp(home)
        command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        assert command[-3:] == [b"-m", b"fedmed_server.deployment.serverapp", b""]
