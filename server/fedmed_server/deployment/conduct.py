"""One launched run at the server, from its folder to its report."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from flwr.serverapp import Grid

from fedmed_common.config import Experiment
from fedmed_common.errors import CheckpointError, FedmedError, Interrupted, TrackingAway
from fedmed_server import history
from fedmed_server.app import RunRequest, run_federation
from fedmed_server.deployment import runs
from fedmed_server.deployment.flower_runtime import Outcome
from fedmed_server.deployment.home import ServerHome
from fedmed_server.deployment.live import Live
from fedmed_server.deployment.runs import Launch, Progress
from fedmed_server.deployment.site_states import moment
from fedmed_server.folders import locked
from fedmed_server.history import RoundDone, RunEnded
from fedmed_server.provision.registry import Revocations
from fedmed_server.receipts import Receipts
from fedmed_server.report import write_report
from fedmed_server.tracking import BackgroundTracker, track

_HOUSEKEEPING_SECONDS = 0.3
_LOCK_PATIENCE_SECONDS = 60.0
_STOP_TRACKING_SECONDS = 2.0
_log = logging.getLogger("fedmed.run")


def conduct(
    grid: Grid, home: ServerHome, run: str, stop: threading.Event, on_end: Callable[[Outcome], None]
) -> None:
    """Carry the run out, or go on with it, and draw its report.

    ``on_end`` is told how it went as soon as nothing is asked of sites any more. ``stop`` ends it before its time, and so
    does the coordinator's wish in ``launch.json``.

    Raises:
        FedmedError: it did not end well. Where the cause lies in the run itself its history says so, and it is not to be
            started again.
    """
    folder = home.run(run)
    with locked(folder, _LOCK_PATIENCE_SECONDS):
        launch = runs.load(folder)
        progress = Progress(folder).update()
        ended = progress.final(launch)
        if ended is None:
            with _recorded(folder, progress):
                experiment = runs.checked_experiment(home, folder)
            request, live = _request(folder, launch, experiment, progress, stop)
            request = replace(
                request, is_revoked=Revocations(home.registry), receipts=Receipts(home.receipts)
            )
            ended = _federate(grid, home, (request, live), on_end)
        on_end("completed")
        if not ended.status.startswith("failed"):
            _complete(home, folder)


def _request(
    folder: Path, launch: Launch, experiment: Experiment, progress: Progress, stop: threading.Event
) -> tuple[RunRequest, Live]:
    """What is asked of the loop, and the note of what it is doing."""
    live = Live(folder, progress.round + 1)

    def watch(site: str, phase: str) -> None:
        live.watch(site, phase)
        if phase not in {"asked", "awaited", "ok"}:
            _log.warning("%s: %s", site, phase)

    def on_round(record: RoundDone) -> None:
        live.on_round(record)
        answered = sum(result.outcome == "ok" for result in record.train)
        seconds = record.seconds["total"]
        _log.info("round %s: %s of %s sites in %.1f s", record.round, answered, len(record.train), seconds)

    request = RunRequest(
        experiment=experiment,
        folder=folder,
        command=launch.command,
        expected=launch.sites,
        watch=watch,
        on_round=on_round,
        stop=stop,
    )
    _log.info("the run begins after round %s of %s", progress.round, experiment.rounds)
    return request, live


def _federate(
    grid: Grid, home: ServerHome, asked: tuple[RunRequest, Live], on_end: Callable[[Outcome], None]
) -> RunEnded:
    request, live = asked
    uri = _tracking_uri(home, request.experiment)
    tracker = BackgroundTracker(request.folder, request.experiment, uri=uri)
    with _housekeeping(request, live), tracker:
        try:
            ended = run_federation(grid, request)
        except Interrupted:
            on_end("stopped")
            tracker.patience_seconds = _STOP_TRACKING_SECONDS
            raise
        except Exception:
            on_end("failed")
            raise
        on_end("completed")
    _log.info("%s", ended.status)
    return ended


@contextmanager
def _recorded(folder: Path, progress: Progress) -> Iterator[None]:
    """An error before the run begins is the run's end as well, so that nobody starts it for ever."""
    try:
        yield
    except Interrupted:
        raise
    except Exception as error:
        reason = str(error) if isinstance(error, FedmedError) else type(error).__name__
        ended = RunEnded(time=moment(time.time()), status=f"failed: {reason}", best_round=progress.best_round)
        history.append(folder / history.FILE, ended)
        raise


@contextmanager
def _housekeeping(request: RunRequest, live: Live) -> Iterator[None]:
    """Beside the run: what is going on is written down, and the coordinator's wish to stop is noticed."""
    done = threading.Event()

    def keep() -> None:
        while not done.wait(_HOUSEKEEPING_SECONDS):
            with suppress(OSError):
                live.flush()
            with suppress(CheckpointError):
                if runs.load(request.folder).wanted == "stop":
                    request.stop.set()

    thread = threading.Thread(target=keep, name="housekeeping", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _complete(home: ServerHome, folder: Path) -> None:
    """The report and the tracking store. They can be made again at any time, so no error in them is the run's."""
    try:
        write_report(folder)
        experiment = runs.experiment_of(folder)
        track(folder, experiment, uri=_tracking_uri(home, experiment))
    except TrackingAway as away:
        _log.warning("%s", away)
    except Exception:
        _log.exception("the report is not drawn; 'fedmed report' draws it")


def _tracking_uri(home: ServerHome, experiment: Experiment) -> str | None:
    return experiment.tracking.uri or home.settings().tracking.uri or None
