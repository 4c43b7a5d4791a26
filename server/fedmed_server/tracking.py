"""MLflow: one run for the federation and a child run per site, drawn from ``history.jsonl``.

Names, steps, values and timestamps come from the history alone, and runs are found again by their tags: what is sent twice, after
a crash between sending and remembering, changes nothing. Only the client API is used, as the fluent one adds the local user's
name and paths as tags.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote, unquote

from fedmed_common.config import Experiment
from fedmed_common.errors import TrackingAway
from fedmed_server import points
from fedmed_server.following import Cursor, Follower, away
from fedmed_server.history import RoundDone, RunEnded, RunStarted

_log = logging.getLogger(__name__)

_LONGEST_PARAMETER, _LONGEST_TAG = 500, 1000
_PARAMETERS_PER_BATCH, _METRICS_PER_BATCH = 100, 1000
_MOST_SITES = 100
"""So many sites get a run of their own in MLflow, the first that are heard of; the report's table has all."""
_MODELS, _LOADER = "models", "fedmed_common.models.pyfunc"
_LOCAL = ("sqlite:///", "file:")
_SOURCE = {"mlflow.user": "fedmed", "mlflow.source.name": "fedmed", "mlflow.source.type": "JOB"}
_STATES = {"failed": "FAILED", "interrupted": "KILLED"}
_QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
_IMPATIENT = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
}

Metrics = dict[str, list[tuple[str, float, int, int]]]
"""By site, with the federation under "": name, value, milliseconds, step."""


def default_uri(run: Path) -> str:
    """The SQLite store beside the run folders."""
    return f"sqlite:///{quote(str(run.absolute().parent / 'mlflow.db'))}"


def track(run: Path, experiment: Experiment, *, uri: str | None = None) -> int:
    """Send the store all of the run that it lacks, report and figures included; the number of records sent.

    ``uri``: where MLflow keeps runs; absent: the experiment's, then :func:`default_uri`.

    Raises:
        TrackingAway: the store cannot be reached or refuses; what it took is remembered.
    """
    follower = _follower(run, experiment, uri)
    sent = follower.catch_up()
    follower.send_files()
    return sent


def tracked_rounds(run: Path, experiment: Experiment, *, uri: str | None = None) -> set[int]:
    """The rounds of the run that its store holds.

    Raises:
        TrackingAway: the store cannot be reached.
    """
    store = _MlflowStore(run.absolute().name, experiment, uri or experiment.tracking.uri or default_uri(run))
    try:
        return store.rounds()
    except Exception as error:
        raise away(type(error).__name__, run) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Registered:
    """A version in the model registry; ``new``: it was made now."""

    version: str
    new: bool


def register(
    run: Path,
    experiment: Experiment,
    files: Mapping[str, bytes],
    *,
    name: str,
    tags: Mapping[str, str],
    alias: str = "",
    uri: str | None = None,
) -> Registered:
    """Make a version of the registered model ``name`` of files, of which one is ``model.safetensors``; and let ``alias`` mean it.

    A version with the same ``fedmed.sha256`` is not made again. The run is tracked first.

    Raises:
        TrackingAway: the store cannot be reached or refuses.
    """
    track(run, experiment, uri=uri)
    store = _MlflowStore(run.absolute().name, experiment, uri or experiment.tracking.uri or default_uri(run))
    try:
        return store.register(name, files, tags, alias)
    except Exception as error:
        raise away(type(error).__name__, run) from error


class BackgroundTracker:
    """Tracks a run in a daemon thread while the block runs; never delays and never fails it.

    On leaving the block, one last attempt is given ``patience_seconds``, which may be changed until then; ``problem`` then
    says what is left to do, or is empty.
    """

    def __init__(
        self, run: Path, experiment: Experiment, *, uri: str | None = None, patience_seconds: float = 20.0
    ) -> None:
        self.problem = ""
        self.patience_seconds = patience_seconds
        self._run = run
        self._follower = _follower(run, experiment, uri)
        self._leaving = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="tracking", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leaving.set()
        self._thread.join(self.patience_seconds)
        if self._thread.is_alive():
            self.problem = str(away("no answer in time", self._run))
        if self.problem:
            _log.warning("%s", self.problem)

    def _follow(self) -> None:
        least_seconds, most_seconds = 1.0, 60.0
        pause_seconds = least_seconds
        while not self._leaving.wait(pause_seconds):
            try:
                self._follower.catch_up()
                pause_seconds = least_seconds
            except TrackingAway:
                pause_seconds = min(2 * pause_seconds, most_seconds)
        try:
            self._follower.catch_up()
            self._follower.send_files()
        except TrackingAway as error:
            self.problem = str(error)


def _follower(run: Path, experiment: Experiment, uri: str | None) -> Follower:
    address = uri or experiment.tracking.uri or default_uri(run)

    def files() -> dict[str, bytes]:
        from fedmed_server.report import artifacts

        return artifacts(run, shareable=not address.startswith(_LOCAL))

    return Follower(run, _MlflowStore(run.absolute().name, experiment, address), files)


class _MlflowStore:
    """A tracking address as a :class:`fedmed_server.following.Store`."""

    def __init__(self, run_name: str, experiment: Experiment, address: str) -> None:
        self.run_name, self.experiment, self.address = run_name, experiment, address
        self._client: Any = None
        self._group = ""
        self._searched = False

    def open(self, cursor: Cursor) -> Cursor:
        os.environ.update(_QUIET)
        for name, value in _IMPATIENT.items():
            os.environ.setdefault(name, value)
        from mlflow import MlflowClient

        for noisy in ("mlflow", "alembic"):
            logging.getLogger(noisy).setLevel(logging.ERROR)
        with _alone(self.address):
            self._client = MlflowClient(tracking_uri=self.address)
            self._group, self._searched = self._find_or_make_group(), False
        known = cursor.parent and self._is_active(cursor.parent)
        return cursor if known else Cursor(store=cursor.store)

    def send(self, records: Sequence[RunStarted | RoundDone | RunEnded], cursor: Cursor) -> Cursor:
        cursor = self._with_parent(cursor, points.milliseconds(records[0]))
        metrics: Metrics = {}
        for record in records:
            for site, site_metrics in self._metrics(record):
                metrics.setdefault(site, []).extend(site_metrics)
        for site in metrics:
            cursor = self._with_child(cursor, site, points.milliseconds(records[0]))
        for site, site_metrics in metrics.items():
            if not site or site in cursor.children:
                self._log_metrics(cursor.children[site] if site else cursor.parent, site_metrics)
        turns = [record for record in records if not isinstance(record, RoundDone)]
        for turn in turns:
            self._log_tags(cursor.parent, _turn_tags(turn))
        if turns:
            self._set_state(cursor, turns[-1])
        return cursor

    def upload(self, name: str, content: bytes, cursor: Cursor) -> Cursor:
        cursor = self._with_parent(cursor, None)
        path = PurePosixPath(name)
        with tempfile.TemporaryDirectory(prefix="fedmed-") as folder:
            file = Path(folder) / path.name
            file.write_bytes(content)
            self._client.log_artifact(
                cursor.parent, str(file), str(path.parent) if path.parent.name else None
            )
        return cursor

    def rounds(self) -> set[int]:
        """The rounds of which the federation's run has the time."""
        self.open(Cursor(store=""))
        found = self._search({"fedmed.run_id": self.run_name, "fedmed.role": "federation"})
        return {
            metric.step
            for run in found
            for metric in self._client.get_metric_history(run.info.run_id, "seconds/total")
        }

    def register(
        self, name: str, files: Mapping[str, bytes], tags: Mapping[str, str], alias: str
    ) -> Registered:
        """As :func:`register`."""
        from mlflow.exceptions import MlflowException

        cursor = self._with_parent(self.open(Cursor(store="")), None)
        try:
            self._client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        of_these = [
            one
            for one in self._client.search_model_versions(f"name = '{_quoted(name)}'")
            if one.tags.get("fedmed.sha256") == tags["fedmed.sha256"]
        ]
        if of_these:
            number = str(of_these[0].version)
        else:
            folder = f"{_MODELS}/{tags['fedmed.model']}"
            with tempfile.TemporaryDirectory(prefix="fedmed-") as place:
                for file, content in files.items():
                    (Path(place) / file).write_bytes(content)
                _described(self.experiment, cursor.parent, folder).save(str(Path(place) / "MLmodel"))
                self._client.log_artifacts(cursor.parent, place, folder)
            made = self._client.create_model_version(
                name,
                f"runs:/{cursor.parent}/{folder}",
                cursor.parent,
                tags={tag: value[:_LONGEST_TAG] for tag, value in tags.items()},
            )
            number = str(made.version)
        if alias:
            self._client.set_registered_model_alias(name, alias, number)
        return Registered(version=number, new=not of_these)

    def _find_or_make_group(self) -> str:
        """The id of MLflow's own 'experiment': a named group of runs."""
        from mlflow.exceptions import MlflowException

        name = self.experiment.tracking.experiment or "fedmed"
        found = self._client.get_experiment_by_name(name)
        if found is None:
            try:
                return str(
                    self._client.create_experiment(name, artifact_location=_artifact_folder(self.address))
                )
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
                found = self._client.get_experiment_by_name(name)
        return str(found.experiment_id)

    def _is_active(self, run_id: str) -> bool:
        from mlflow.exceptions import MlflowException

        try:
            return bool(self._client.get_run(run_id).info.lifecycle_stage == "active")
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return False
            raise

    def _with_parent(self, cursor: Cursor, start: int | None) -> Cursor:
        if cursor.parent:
            return cursor
        found = self._search({"fedmed.run_id": self.run_name, "fedmed.role": "federation"})
        tags = {**_SOURCE, "fedmed.run_id": self.run_name, "fedmed.role": "federation", **self._about()}
        parent = found[0].info.run_id if found else self._create(self.run_name, tags, start)
        self._log_parameters(parent)
        return cursor.model_copy(update={"parent": parent})

    def _with_child(self, cursor: Cursor, site: str, start: int) -> Cursor:
        if not site or site in cursor.children:
            return cursor
        if not self._searched:
            self._searched = True
            found = self._search({"mlflow.parentRunId": cursor.parent})
            children = {run.data.tags.get("fedmed.site", ""): run.info.run_id for run in found}
            cursor = cursor.model_copy(update={"children": children | cursor.children})
        if site in cursor.children or len(cursor.children) >= _MOST_SITES:
            return cursor
        tags = {
            **_SOURCE,
            "mlflow.parentRunId": cursor.parent,
            "fedmed.run_id": self.run_name,
            "fedmed.role": "site",
            "fedmed.site": site[:_LONGEST_TAG],
        }
        child = self._create(site[:_LONGEST_TAG], tags, start)
        return cursor.model_copy(update={"children": cursor.children | {site: child}})

    def _create(self, name: str, tags: dict[str, str], start: int | None) -> str:
        run = self._client.create_run(self._group, start_time=start, tags=tags, run_name=name)
        return str(run.info.run_id)

    def _search(self, tags: dict[str, str]) -> list[Any]:
        wanted = " and ".join(f"tags.`{name}` = '{_quoted(value)}'" for name, value in tags.items())
        found: list[Any] = []
        token = None
        while True:
            page = self._client.search_runs(
                [self._group], wanted, page_token=token, order_by=["start_time ASC"]
            )
            found.extend(page)
            token = page.token
            if not token:
                return found

    def _about(self) -> dict[str, str]:
        experiment = self.experiment
        return {
            "fedmed.experiment": experiment.name,
            "fedmed.recipe": experiment.recipe.label,
            "fedmed.model": experiment.model.name,
            "fedmed.task": experiment.task.name,
        }

    def _log_parameters(self, run_id: str) -> None:
        """The experiment, flattened; parameters that the run has already are left as they are, as MLflow never changes one."""
        from mlflow.entities import Param

        known = self._client.get_run(run_id).data.params
        flat = dict(points.flatten(json.loads(self.experiment.order_text()), _LONGEST_PARAMETER))
        new = [Param(name, value) for name, value in flat.items() if name not in known]
        for first in range(0, len(new), _PARAMETERS_PER_BATCH):
            self._client.log_batch(run_id, params=new[first : first + _PARAMETERS_PER_BATCH])

    def _log_metrics(self, run_id: str, metrics: list[tuple[str, float, int, int]]) -> None:
        from mlflow.entities import Metric

        for first in range(0, len(metrics), _METRICS_PER_BATCH):
            batch = metrics[first : first + _METRICS_PER_BATCH]
            self._client.log_batch(run_id, metrics=[Metric(*metric) for metric in batch])

    def _log_tags(self, run_id: str, tags: dict[str, str]) -> None:
        from mlflow.entities import RunTag

        self._client.log_batch(
            run_id, tags=[RunTag(name, value[:_LONGEST_TAG]) for name, value in tags.items()]
        )

    def _set_state(self, cursor: Cursor, turn: RunStarted | RunEnded) -> None:
        for run_id in (cursor.parent, *cursor.children.values()):
            if isinstance(turn, RunStarted):
                self._client.update_run(run_id, status="RUNNING")
            else:
                state = _STATES.get(points.status(turn), "FINISHED")
                self._client.set_terminated(run_id, state, points.milliseconds(turn))

    def _metrics(
        self, record: RunStarted | RoundDone | RunEnded
    ) -> Iterator[tuple[str, list[tuple[str, float, int, int]]]]:
        when = points.milliseconds(record)
        if isinstance(record, RunStarted):
            step = record.resumed_from_round
            for facts in record.sites:
                yield (
                    facts.name,
                    [(name, value, when, step) for name, value in points.of_facts(facts).items()],
                )
            return
        last_round = self.experiment.rounds
        for part in (
            [points.of_round(record)] if isinstance(record, RoundDone) else points.of_test(record, last_round)
        ):
            for site, values in {"": part.federation, **part.sites}.items():
                yield site, [(name, value, when, part.step) for name, value in values.items()]


def _described(experiment: Experiment, run_id: str, folder: str) -> Any:
    """MLflow's description of a published network: its shapes, and the module that loads it without unpickling anything."""
    import numpy as np
    from mlflow.models import Model, ModelSignature
    from mlflow.types.schema import Schema, TensorSpec

    plan = experiment.plan
    kind = np.dtype(np.float32)
    outputs = (
        (-1, plan.outputs) if experiment.task.name == "classification" else (-1, plan.outputs, *plan.patch)
    )
    signature = ModelSignature(
        Schema([TensorSpec(kind, (-1, plan.in_channels, *plan.patch))]),
        Schema([TensorSpec(kind, outputs)]),
    )
    model = Model(artifact_path=folder, run_id=run_id, signature=signature)
    model.add_flavor("fedmed", data="model.safetensors", version=version("fedmed"))
    return model.add_flavor("python_function", loader_module=_LOADER, data="model.safetensors")


@contextmanager
def _alone(address: str) -> Iterator[None]:
    """Hold a SQLite store while its tables are made: two runs that make them at once leave them half made for ever."""
    if not address.startswith("sqlite:///"):
        yield
        return
    file = Path(unquote(address.removeprefix("sqlite:///")))
    with file.with_name(f".{file.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _turn_tags(turn: RunStarted | RunEnded) -> dict[str, str]:
    if isinstance(turn, RunEnded):
        return {"fedmed.status": points.status(turn), "fedmed.best_round": str(turn.best_round)}
    environment = {f"fedmed.environment.{name}": value for name, value in turn.environment.items()}
    return {
        "fedmed.status": "running",
        "fedmed.parameters": str(turn.parameters),
        "fedmed.resumed_from_round": str(turn.resumed_from_round),
        **environment,
    }


def _quoted(value: str) -> str:
    """``value`` inside single quotes of MLflow's search language, which knows no escape."""
    return value.replace("'", "")


def _artifact_folder(address: str) -> str | None:
    """Beside a SQLite file; a server decides for itself."""
    if not address.startswith("sqlite:///"):
        return None
    file = Path(unquote(address.removeprefix("sqlite:///")).partition("?")[0])
    return (file.absolute().parent / "mlartifacts").as_uri()
