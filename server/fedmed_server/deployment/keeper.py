"""Keeps what the coordinator wants true: a run that is wanted has a Flower run, and one that is not has none.

A Flower run dies with its ServerApp, or with a SuperLink that was away for long. Ours does not: the keeper starts another
Flower run for it, which goes on from the checkpoint. What has ended for good, and what people stopped, it leaves alone.
"""

from __future__ import annotations

import logging
import threading
import time
from enum import Enum, auto
from pathlib import Path

from fedmed_common.errors import FedmedError
from fedmed_server import history
from fedmed_server.deployment import runs
from fedmed_server.deployment.flower_client import Refused, SuperLinkAway
from fedmed_server.deployment.flower_runtime import FlowerControl, FlowerRun
from fedmed_server.deployment.home import ServerHome
from fedmed_server.deployment.runs import Launch, Progress
from fedmed_server.deployment.site_states import moment
from fedmed_server.folders import is_locked, locked
from fedmed_server.history import RunEnded
from fedmed_server.report import REPORT

MOST_RESTARTS = 20
_LOOP_SECONDS = 1.0
_STOP_PATIENCE_SECONDS = 15.0
_QUICK_RESTARTS = 3
_LONGEST_WAIT_SECONDS = 30.0
_log = logging.getLogger(__name__)


class Action(Enum):
    """What a run needs."""

    nothing = auto()
    start = auto()
    stop = auto()
    record_interrupted = auto()
    give_up = auto()


def decide(
    launch: Launch, progress: Progress, flower: FlowerRun | None, *, held: bool, reported: bool
) -> Action:
    """What a run needs, seen from its folder and from Flower.

    ``held``: a ServerApp is at it. ``reported``: its report is drawn.
    """
    alive = flower is not None and not flower.finished
    if progress.final(launch) is not None:
        if held or reported or _failed(progress):
            return Action.stop if alive and not held else Action.nothing
        undrawn = flower is None or flower.outcome != "completed"
        return Action.start if not alive and undrawn and launch.restarts < MOST_RESTARTS else Action.nothing
    if launch.wanted == "stop":
        if alive:
            return Action.nothing if held else Action.stop
        return Action.nothing if held or progress.end is not None else Action.record_interrupted
    if alive or held:
        return Action.nothing
    hopeless = launch.restarts >= MOST_RESTARTS and progress.round == launch.round
    return Action.give_up if hopeless else Action.start


def pause_seconds(restarts: int) -> float:
    """How long to wait before a run is started again: not at all at first, then longer and longer."""
    return (
        min(2.0 ** (restarts - _QUICK_RESTARTS), _LONGEST_WAIT_SECONDS) if restarts > _QUICK_RESTARTS else 0
    )


class Keeper:
    """Looks after all launched runs of a server until it is told to stop."""

    def __init__(self, home: Path) -> None:
        self._home = ServerHome(home)
        self._control: FlowerControl | None = None
        self._progress: dict[Path, Progress] = {}
        self._settled: dict[Path, tuple[int, int]] = {}
        self._started: dict[Path, float] = {}
        self._stop_seen: dict[Path, float] = {}
        self._problems: dict[Path, str] = {}
        self._away = self._unknown = ""

    def run(self, stop: threading.Event) -> None:
        """Look after them about once a second. Whatever goes wrong is logged, and tried again."""
        while not stop.is_set():
            try:
                self._look_after_all()
                self._away = self._unknown = ""
            except SuperLinkAway as away:
                self._say_away(str(away))
            except Exception as error:
                if repr(error) != self._unknown:
                    _log.exception("the keeper met something unknown; it goes on")
                self._unknown = repr(error)
            stop.wait(_LOOP_SECONDS)
        if self._control is not None:
            self._control.close()

    def _look_after_all(self) -> None:
        control = self._connected()
        for folder in runs.launched(self._home):
            try:
                if self._settled.get(folder) != _stamp(folder):
                    self._look_after(control, folder)
                self._problems.pop(folder, None)
            except (FedmedError, OSError, ValueError, Refused) as error:
                if self._problems.get(folder) != str(error):
                    _log.error("run %s cannot be looked after: %s", folder.name, error)
                self._problems[folder] = str(error)

    def _connected(self) -> FlowerControl:
        """The SuperLink's control; at first contact, Flower runs that a server before this one left behind are ended."""
        if self._control is None:
            control = FlowerControl(self._home)
            for orphan in control.unfinished():
                if not orphan.pending:
                    control.stop(orphan.identifier)
            self._control = control
        return self._control

    def _look_after(self, control: FlowerControl, folder: Path) -> None:
        stamp = _stamp(folder)
        launch = runs.load(folder)
        progress = self._progress.setdefault(folder, Progress(folder)).update()
        flower = control.find(launch.flower_runs[-1]) if launch.flower_runs else None
        held = is_locked(folder) and not self._deaf(folder, launch)
        action = decide(launch, progress, flower, held=held, reported=(folder / REPORT).exists())
        if action is Action.start:
            self._start(control, folder, launch, progress)
        elif action is Action.stop and flower is not None:
            control.stop(flower.identifier)
        elif action is Action.record_interrupted:
            _record(folder, "interrupted", progress)
        elif action is Action.give_up:
            _record(folder, _hopeless(launch, progress), progress)
        elif not held and (flower is None or flower.finished) and progress.is_settled(launch):
            self._settled[folder] = stamp
            del self._progress[folder]

    def _start(self, control: FlowerControl, folder: Path, launch: Launch, progress: Progress) -> None:
        wait = pause_seconds(launch.restarts if progress.round == launch.round else 0)
        if time.monotonic() - self._started.get(folder, -wait) < wait:
            return
        try:
            runs.checked_experiment(self._home, folder)
        except FedmedError as error:
            _record(folder, f"failed: {error}", progress)
            return
        # Flower may have begun one already, where a crash or an outage kept that from being noted.
        begun = [flower.identifier for flower in control.unfinished() if flower.run == launch.run]
        flower_run = begun[0] if begun else control.start((folder / runs.BUNDLE).read_bytes(), launch.run)
        launch = runs.started(folder, launch, progress, flower_run)
        self._started[folder] = time.monotonic()
        again = f", again: {launch.restarts} times since round {launch.round}" if launch.restarts else ""
        _log.warning("run %s is started%s", launch.run, again)

    def _deaf(self, folder: Path, launch: Launch) -> bool:
        """Whether a ServerApp was asked to stop, and does not."""
        if launch.wanted == "run":
            self._stop_seen.pop(folder, None)
            return False
        return (
            time.monotonic() - self._stop_seen.setdefault(folder, time.monotonic()) > _STOP_PATIENCE_SECONDS
        )

    def _say_away(self, reason: str) -> None:
        if reason != self._away:
            _log.warning("%s; runs wait, and are looked after when it is back", reason)
        self._away = reason


def _failed(progress: Progress) -> bool:
    return progress.end is not None and progress.end.status.startswith("failed")


def _hopeless(launch: Launch, progress: Progress) -> str:
    last = progress.end.status.partition("interrupted: ")[2] if progress.end else ""
    return (
        f"failed: the ServerApp ended {MOST_RESTARTS} times without finishing round {launch.round + 1}"
        f"{f', the last time for this: {last}' if last else ''}; "
        f"{runs.LOG} in the run's folder says why, and 'fedmed resume {launch.run}' tries again"
    )


def _record(folder: Path, status: str, progress: Progress) -> None:
    """End the run's history, where no ServerApp is there to do it."""
    with locked(folder):
        ended = RunEnded(time=moment(time.time()), status=status, best_round=progress.best_round)
        history.append(folder / history.FILE, ended)


def _stamp(folder: Path) -> tuple[int, int]:
    """Changes when the run's launch or history does."""
    launch = (folder / runs.LAUNCH).stat().st_mtime_ns
    file = folder / history.FILE
    return launch, file.stat().st_size if file.exists() else 0
