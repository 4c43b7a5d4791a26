"""What the coordinator is shown: each run's state, each site's part in it, and each site's connection."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fedmed_common import identity
from fedmed_common.children import pid_file
from fedmed_common.errors import FedmedError
from fedmed_server.deployment import live, runs
from fedmed_server.deployment.home import ServerHome
from fedmed_server.deployment.runs import Launch, Progress
from fedmed_server.deployment.site_states import Refusal, SiteState, load_site_states
from fedmed_server.folders import is_locked
from fedmed_server.history import RunEnded, SiteResult
from fedmed_server.provision.registry import load_registry
from fedmed_server.report import REPORT

State = Literal[
    "waiting", "starting", "gathering", "running", "testing", "reporting",
    "stopping", "interrupted", "completed", "degraded", "failed", "damaged",
]  # fmt: skip
"""waiting: 'fedmed serve' does not run. gathering: sites are awaited before the first round. damaged: cannot be read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SitePart:
    """One site in a run. ``phase``: what it is asked for now, or its last answer; ``since``: ISO time; both empty if never asked.

    ``connection``: as in :class:`SiteStatus`. ``answered``, ``asked``: rounds of training, of those that are done.
    """

    site: str
    connection: str
    phase: str
    since: str
    answered: int
    asked: int
    problem: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStatus:
    """One run. ``round``: how many are done. ``status``: the sentence that its history ends with, if it has ended, or what is
    damaged.

    ``criterion``: the last validation value; ``restarts``: since the last round.
    """

    run: str
    experiment: str
    state: State
    status: str
    round: int
    rounds: int
    best_round: int
    criterion: float | None
    restarts: int
    report: str
    sites: tuple[SitePart, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteStatus:
    """One registered site. ``connection``: connected, away, refused, never or revoked. Times are ISO; empty for never."""

    site: str
    connection: str
    version: str
    last_seen: str
    clock_skew_seconds: float
    refused: str
    refused_at: str
    certificate_expires: str
    certificate_days_left: int


def is_serving(home: ServerHome) -> bool:
    """Whether ``fedmed serve`` runs on this folder."""
    try:
        os.kill(int(pid_file(home.path, "serve").read_text()), 0)
    except PermissionError:
        return True
    except (OSError, ValueError):
        return False
    return True


def all_runs(home: ServerHome) -> list[RunStatus]:
    """The launched runs, the oldest first."""
    return [_status_or_damage(home, folder) for folder in runs.launched(home)]


def run_status(home: ServerHome, folder: Path) -> RunStatus:
    """One run as it is at this moment.

    Raises:
        CheckpointError: not the folder of a launched run.
    """
    launch = runs.load(folder)
    progress = Progress(folder).update()
    experiment = runs.experiment_of(folder)
    held = is_locked(folder)
    doing = live.read(folder) if held else None
    state = _state(home, launch, progress, experiment.rounds, held=held)
    return RunStatus(
        run=launch.run,
        experiment=experiment.name,
        state=state,
        status=progress.end.status if progress.end and not held else "",
        round=progress.round,
        rounds=experiment.rounds,
        best_round=progress.best_round,
        criterion=_last_criterion(progress),
        restarts=launch.restarts,
        report=str(folder / REPORT) if (folder / REPORT).exists() else "",
        sites=_parts(home, launch.sites, progress, doing),
    )


def _status_or_damage(home: ServerHome, folder: Path) -> RunStatus:
    """One damaged folder hides no other run."""
    try:
        return run_status(home, folder)
    except (FedmedError, OSError, ValueError) as error:
        ours = isinstance(error, FedmedError)
        reason = (
            str(error).partition("\n")[0] if ours else f"its files cannot be read ({type(error).__name__})"
        )
        return RunStatus(
            run=folder.name,
            experiment="",
            state="damaged",
            status=reason,
            round=0,
            rounds=0,
            best_round=0,
            criterion=None,
            restarts=0,
            report="",
            sites=(),
        )


def all_sites(home: ServerHome) -> list[SiteStatus]:
    """The registered sites by name.

    Raises:
        ProvisionError: the registry cannot be read.
    """
    states, serving = load_site_states(home.site_states), is_serving(home)
    statuses = []
    for name, site in sorted(load_registry(home.registry).items()):
        state = states.get(name, SiteState())
        refusal = state.refusal or Refusal(code="", time="")
        statuses.append(
            SiteStatus(
                site=name,
                connection="revoked" if site.revoked else _connection(state, serving),
                version=state.version,
                last_seen=state.last_seen,
                clock_skew_seconds=state.clock_skew_seconds,
                refused=refusal.code,
                refused_at=refusal.time,
                certificate_expires=site.certificate.not_valid_after_utc.isoformat(),
                certificate_days_left=identity.days_left(site.certificate),
            )
        )
    return statuses


def _connection(state: SiteState, serving: bool) -> str:
    """A server that does not run connects nobody, whatever it wrote last."""
    return "away" if state.state == "connected" and not serving else state.state


def _state(home: ServerHome, launch: Launch, progress: Progress, rounds: int, *, held: bool) -> State:
    final = progress.final(launch)
    if final is not None:
        return "reporting" if held else _state_of(final)
    if launch.wanted == "stop":
        return "stopping" if held else "interrupted"
    if not held:
        return "starting" if is_serving(home) else "waiting"
    if progress.started is None or progress.end is not None:
        return "gathering"
    return "testing" if 0 < rounds <= progress.round else "running"


def _state_of(end: RunEnded) -> State:
    if end.status.startswith("completed"):
        return "completed"
    return "degraded" if end.status.startswith("degraded") else "failed"


def _last_criterion(progress: Progress) -> float | None:
    """Of the last round that was evaluated: not every round is."""
    values = [progress.rounds[number].criterion for number in sorted(progress.rounds)]
    return next((value for value in reversed(values) if value is not None), None)


def _parts(
    home: ServerHome, names: Sequence[str], progress: Progress, doing: live.Now | None
) -> tuple[SitePart, ...]:
    """Each site's part in the run. There may be thousands: the files are read once."""
    states = load_site_states(home.site_states)
    results: dict[str, list[SiteResult]] = {name: [] for name in names}
    for done in progress.rounds.values():
        for result in done.train:
            results.setdefault(result.site, []).append(result)
    serving = is_serving(home)
    return tuple(_part(name, states.get(name, SiteState()), results[name], doing, serving) for name in names)


def _part(
    name: str, state: SiteState, results: Sequence[SiteResult], doing: live.Now | None, serving: bool
) -> SitePart:
    now = doing.sites.get(name) if doing else None
    last = results[-1] if results else None
    return SitePart(
        site=name,
        connection=_connection(state, serving),
        phase=now.phase if now else "",
        since=now.since if now else "",
        answered=sum(result.outcome == "ok" for result in results),
        asked=len(results),
        problem=last.problem() if last and last.outcome != "ok" else "",
    )
