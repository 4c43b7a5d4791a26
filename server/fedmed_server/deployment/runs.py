"""A launched run's folder: what the coordinator wants of it, and how far it is.

``launch.json`` is written by the coordinator's commands and by the keeper, each holding its lock, so that neither loses what
the other wrote. Everything else about the run is in its history.
"""

from __future__ import annotations

import fcntl
import json
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import tomli_w
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedmed_common import bundle, identity
from fedmed_common.config import Experiment
from fedmed_common.errors import CheckpointError, ConfigError
from fedmed_common.files import write_atomically
from fedmed_common.loading import validate
from fedmed_server import folders, history
from fedmed_server.deployment.home import ServerHome
from fedmed_server.history import RoundDone, RunEnded, RunStarted

LAUNCH, BUNDLE, EXPERIMENT, LOG = "launch.json", "bundle.fab", "experiment.toml", "server.log"
_LOCK = ".launch.lock"
_GOOD = ("completed", "degraded")
_REMEMBERED = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """What is wanted of a run.

    ``flower_runs``: the newest of Flower's runs that carried it. ``restarts``: how often it was started again since its last
    finished round, which is ``round``. ``since``: how many records its history had when it was last asked for, so that an
    end from before is not taken for an end of now.
    """

    run: str
    wanted: Literal["run", "stop"]
    sites: tuple[str, ...]
    command: str
    flower_runs: tuple[int, ...] = ()
    restarts: int = 0
    round: int = 0
    since: int = 0


class Progress:
    """What a run's history tells; :meth:`update` reads on from where it was read last.

    ``rounds``: those that stand, by number. ``end``: the last record, where the run has ended.
    """

    def __init__(self, folder: Path) -> None:
        self._file = folder / history.FILE
        self._offset = 0
        self.records = 0
        self.started: RunStarted | None = None
        self.rounds: dict[int, RoundDone] = {}
        self.end: RunEnded | None = None

    def update(self) -> Progress:
        """Read what was written since."""
        records, self._offset = history.read_from(self._file, self._offset)
        for record in records:
            self.records += 1
            self.end = None
            if isinstance(record, RunStarted):
                self.started = record
                kept = record.resumed_from_round
                self.rounds = {number: done for number, done in self.rounds.items() if number <= kept}
            elif isinstance(record, RoundDone):
                self.rounds[record.round] = record
            else:
                self.end = record
        return self

    @property
    def round(self) -> int:
        """How many rounds are done."""
        return max(self.rounds, default=0)

    @property
    def best_round(self) -> int:
        """The best round so far; 0 before the first evaluation."""
        return max((number for number, done in self.rounds.items() if done.is_best), default=0)

    def final(self, launch: Launch) -> RunEnded | None:
        """The run's end, where it has one that stands: done, or failed since it was last asked for."""
        if self.end is None:
            return None
        if self.end.status.startswith(_GOOD):
            return self.end
        failed = self.end.status.startswith("failed")
        return self.end if failed and self.records > launch.since else None

    def is_settled(self, launch: Launch) -> bool:
        """Whether nothing happens to the run until somebody wants something else of it."""
        return self.final(launch) is not None or (launch.wanted == "stop" and self.end is not None)


def create(
    home: ServerHome, experiment: Experiment, sites: tuple[str, ...], command: str, key: Ed25519PrivateKey
) -> Path:
    """Make the folder of a new run, which the keeper then finds; whole, or not at all."""
    run = folders.new_run_id(experiment)
    launch = Launch(run=run, wanted="run", sites=sites, command=command)
    document = experiment.model_dump(mode="json", exclude_none=True)
    files = {
        EXPERIMENT: tomli_w.dumps(document).encode(),
        BUNDLE: bundle.build(experiment, key),
        LAUNCH: _text(launch),
    }
    folders.create(home.run(run), files)
    return home.run(run)


def is_launched(folder: Path) -> bool:
    """Whether the folder is that of a run for hospitals."""
    return (folder / LAUNCH).is_file()


def load(folder: Path) -> Launch:
    """What is wanted of the run.

    Raises:
        CheckpointError: not the folder of a launched run.
    """
    try:
        fields: Mapping[str, Any] = json.loads((folder / LAUNCH).read_bytes())
        return Launch(
            **{
                **fields,
                "sites": tuple(fields["sites"]),
                "flower_runs": tuple(fields.get("flower_runs", ())),
            }
        )
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(
            f"{folder}: not the folder of a launched run ({type(error).__name__} on {LAUNCH})\n"
            "  fix: 'fedmed status' lists the runs"
        ) from None


def change(folder: Path, **changes: Any) -> Launch:
    """Write some fields anew, and leave the others as whoever wrote them last did."""
    with (folder / _LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        launch = replace(load(folder), **changes)
        write_atomically(folder / LAUNCH, _text(launch))
    return launch


def started(folder: Path, launch: Launch, progress: Progress, flower_run: int) -> Launch:
    """Note that Flower has begun another run for it."""
    again = bool(launch.flower_runs) and progress.round == launch.round
    return change(
        folder,
        flower_runs=(*launch.flower_runs, flower_run)[-_REMEMBERED:],
        restarts=launch.restarts + 1 if again else 0,
        round=progress.round,
    )


def ask_to_stop(folder: Path) -> Launch:
    """Have the run interrupted as soon as may be.

    Raises:
        CheckpointError: it has ended already.
    """
    launch = load(folder)
    end = Progress(folder).update().final(launch)
    if end is not None:
        raise CheckpointError(f"{launch.run} has ended: {end.status}")
    return change(folder, wanted="stop")


def ask_to_resume(folder: Path) -> Launch:
    """Have a run that was interrupted, or has failed, go on from its checkpoint.

    Raises:
        CheckpointError: it is done.
    """
    launch = load(folder)
    progress = Progress(folder).update()
    if progress.end is not None and progress.end.status.startswith(_GOOD):
        raise CheckpointError(f"{launch.run} has ended: {progress.end.status}\n  fix: launch a new run")
    return change(folder, wanted="run", restarts=0, round=progress.round, since=progress.records)


def find(home: ServerHome, name: str) -> Path:
    """The folder of a run by its id, by the beginning of its id, or by its path.

    Raises:
        ConfigError: no such run, or more than one.
    """
    for folder in (Path(name), home.run(name)):
        if is_launched(folder):
            return folder.absolute()
    fits = [folder for folder in launched(home) if folder.name.startswith(name)]
    if len(fits) == 1:
        return fits[0]
    problem = f"{len(fits)} runs begin with '{name}'" if fits else f"no run is called '{name}'"
    raise ConfigError(problem, file=home.runs, fix="'fedmed status' lists the runs")


def launched(home: ServerHome) -> list[Path]:
    """The folders of all launched runs, the oldest first; one that is still being made, or never was made whole, is none."""
    if not home.runs.is_dir():
        return []
    return sorted(
        folder for folder in home.runs.iterdir() if not folder.name.startswith(".") and is_launched(folder)
    )


def experiment_of(folder: Path) -> Experiment:
    """The run's experiment, without the tables for simulations.

    Raises:
        ConfigError: the file is not an experiment of this version.
    """
    file = folder / EXPERIMENT
    try:
        document = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"cannot be read ({type(error).__name__})",
            file=file,
            fix="put the file back as it was, or launch a new run",
        ) from None
    document.pop("simulation", None)
    return validate(Experiment, document, file)


def checked_experiment(home: ServerHome, folder: Path) -> Experiment:
    """The run's experiment, which must be that of the signed bundle: it is what sites have approved.

    Raises:
        CheckpointError: it was changed since, or the bundle cannot be read.
        BundleRefused: the bundle is not this consortium's, or is damaged.
    """
    signer = identity.load_signing_key(home.signing_key).public_key()
    try:
        content = (folder / BUNDLE).read_bytes()
    except OSError as error:
        raise CheckpointError(f"{folder / BUNDLE}: {error.strerror}\n  fix: launch a new run") from None
    approved = bundle.check(content, signer)
    experiment = experiment_of(folder)
    if bundle.approval_hash(experiment, approved.code_version) != approved.hash:
        raise CheckpointError(
            f"{folder / EXPERIMENT}: was changed after the launch\n  fix: undo the change, or launch a new run"
        )
    return experiment


def _text(launch: Launch) -> bytes:
    return json.dumps(asdict(launch), indent=1).encode() + b"\n"
