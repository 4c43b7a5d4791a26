"""MLflow has what the history has, once, whatever happened on the way."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fedmed_common.errors import TrackingAway
from fedmed_server.history import RunEnded, append
from fedmed_server.report import Figure, write_report
from fedmed_server.report.source import read_experiment
from fedmed_server.tracking import BackgroundTracker, default_uri, track

MakeRun = Callable[..., Any]


SHARES = {"liver": 1.0, "spleen": 0.9, "cyst": 0.1}


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SQLite store with its tables, which take seconds to make."""
    from mlflow import MlflowClient

    file = tmp_path_factory.mktemp("store") / "mlflow.db"
    MlflowClient(f"sqlite:///{file}")
    return file


@pytest.fixture
def make_small(make_run: MakeRun, empty_store: Path, tmp_path: Path) -> MakeRun:
    """A run of three classes beside an empty store."""

    def make(name: str = "small-1", **changes: Any) -> Any:
        made = make_run(name, **{"shares": SHARES, **changes})
        if not (tmp_path / "runs" / "mlflow.db").exists():
            shutil.copy(empty_store, tmp_path / "runs" / "mlflow.db")
        return made

    return make


def client_of(run: Path, uri: str | None = None) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(uri or default_uri(run))


def runs_of(run: Path, uri: str | None = None) -> tuple[Any, dict[str, Any]]:
    """The federation's run, and the children by site."""
    client = client_of(run, uri)
    group = client.get_experiment_by_name("fedmed")
    runs = [
        one for one in client.search_runs([group.experiment_id]) if one.data.tags["fedmed.run_id"] == run.name
    ]
    (parent,) = [one for one in runs if one.data.tags["fedmed.role"] == "federation"]
    children = [one for one in runs if one.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    by_site = {one.data.tags["fedmed.site"]: one for one in children}
    assert len(by_site) == len(children) == len(runs) - 1
    return parent, by_site


def everything(run: Path, uri: str | None = None) -> dict[str, list[tuple[str, int, float, int]]]:
    """Each metric point of each run, repetitions and all."""
    client = client_of(run, uri)
    parent, children = runs_of(run, uri)
    return {
        site: sorted(
            (point.key, point.step, point.value, point.timestamp)
            for name in one.data.metrics
            for point in client.get_metric_history(one.info.run_id, name)
        )
        for site, one in {"": parent, **children}.items()
    }


def catch_up(run: Path, uri: str | None = None) -> int:
    return track(run, read_experiment(run), uri=uri)


def test_federation_and_sites_have_their_curves(make_small: MakeRun) -> None:
    made = make_small(rounds=3, late=(2,))
    run = made.all()
    assert catch_up(run) == 5
    parent, children = runs_of(run)
    assert set(children) == set(made.plan.sites)
    assert parent.data.params["train.steps"] == "20"
    assert parent.data.params["task.classes"].startswith('["liver"')
    points = everything(run)
    assert [step for name, step, *_ in points[""] if name == "train/loss"] == [1, 2, 3]
    assert [step for name, step, *_ in points["west"] if name == "train/loss"] == [1, 3]
    for name in (
        "validation/dice/liver",
        "validation/mean_dice",
        "seconds/train",
        "bytes/train/up",
        "test/best/dice/liver",
    ):
        assert name in parent.data.metrics
    for name in (
        "patients/train",
        "presence/liver",
        "seconds/train/site",
        "seconds/train/wait",
        "bytes/validation/down",
        "test/last/dice/liver",
    ):
        assert name in children["north"].data.metrics
    assert all(point[2] >= 0 for point in points["east"] if point[0].startswith("presence/"))


def test_of_many_sites_the_first_have_a_run_of_their_own(
    make_small: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedmed_server.tracking._MOST_SITES", 2)
    made = make_small(rounds=2, late=())
    run = made.all()
    catch_up(run)
    parent, children = runs_of(run)
    assert set(children) == set(made.plan.sites[:2])
    assert parent.data.metrics["sites/train/answered"] == len(made.plan.sites)
    catch_up(run)
    assert set(runs_of(run)[1]) == set(children)


def test_what_private_training_has_spent_is_a_curve_of_each_site_and_of_the_run(make_small: MakeRun) -> None:
    run = make_small(rounds=2, late=(2,), private=True).all()
    catch_up(run)
    points = everything(run)
    spent = {
        site: [value for name, _, value, *_ in points[site] if name == "privacy/epsilon_spent"]
        for site in ("", "north", "west")
    }
    assert spent == {"": [0.875, 1.25], "north": [0.5, 1.0], "west": [0.875]}


def test_files_lie_beside_the_store(make_small: MakeRun) -> None:
    run = make_small(rounds=2).all()
    write_report(run, figures=[Figure(title="Patient 1", caption="", png=b"\x89PNG")])
    catch_up(run)
    client, (parent, _) = client_of(run), runs_of(run)
    names = {
        one.path for folder in ("", "figures") for one in client.list_artifacts(parent.info.run_id, folder)
    }
    assert {"experiment.toml", "report.html", "figures/001.png", "figures/training_loss.svg"} <= names
    assert (run.parent / "mlflow.db").is_file()
    assert list((run.parent / "mlartifacts").rglob("report.html"))


def test_no_name_or_folder_of_this_machine_is_in_parameters_and_tags(make_small: MakeRun) -> None:
    run = make_small(rounds=1).all()
    catch_up(run)
    parent, children = runs_of(run)
    allowed = {
        "mlflow.user",
        "mlflow.source.name",
        "mlflow.source.type",
        "mlflow.runName",
        "mlflow.parentRunId",
    }
    for one in (parent, *children.values()):
        assert {name for name in one.data.tags if not name.startswith("fedmed.")} <= allowed
        assert (
            one.data.tags["mlflow.user"]
            == one.data.tags["mlflow.source.name"]
            == one.info.user_id
            == "fedmed"
        )
        words = json.dumps([one.data.tags, one.data.params])
        assert "/" not in words.replace('"n/a"', "")
        assert not any(name.startswith(("simulation", "tracking")) for name in one.data.params)


def test_sending_again_changes_nothing(make_small: MakeRun) -> None:
    run = make_small(rounds=3).all()
    catch_up(run)
    before = everything(run)
    assert catch_up(run) == 0
    (run / "tracking.json").unlink()
    assert catch_up(run) == 5
    (run / "tracking.json").write_text("{not json")
    assert catch_up(run) == 5
    assert everything(run) == before


KILLED = """
import os, signal, sys
from pathlib import Path
from fedmed_server import following, tracking
from fedmed_server.report.source import read_experiment

run, after = Path(sys.argv[1]), int(sys.argv[2])
following._RECORDS_PER_BATCH = 2
calls = 0
where = getattr(following if sys.argv[3] == "write_atomically" else tracking._MlflowStore, sys.argv[3])

def killed(*arguments):
    global calls
    calls += 1
    if calls > after:
        os.kill(os.getpid(), signal.SIGKILL)
    return where(*arguments)

setattr(following if sys.argv[3] == "write_atomically" else tracking._MlflowStore, sys.argv[3], killed)
tracking.track(run, read_experiment(run))
"""


@pytest.mark.parametrize(
    ("after", "place"),
    [(0, "write_atomically"), (1, "write_atomically"), (2, "_create"), (3, "_log_metrics")],
)
def test_kill_between_sending_and_remembering_loses_and_repeats_nothing(
    make_small: MakeRun, after: int, place: str
) -> None:
    whole, cut = make_small("whole", rounds=4).all(), make_small("cut", rounds=4).all()
    catch_up(whole)
    ended = subprocess.run(
        [sys.executable, "-c", KILLED, str(cut), str(after), place], check=False, timeout=120
    )
    assert ended.returncode == -signal.SIGKILL
    catch_up(cut)
    assert everything(cut) == everything(whole)
    assert runs_of(cut)[0].info.status == "FINISHED"


@pytest.mark.parametrize(
    ("status", "state", "tag"),
    [
        ("completed", "FINISHED", "completed"),
        ("degraded: west missed round 1", "FINISHED", "degraded"),
        ("failed: /home/somebody/data is gone", "FAILED", "failed"),
        ("interrupted", "KILLED", "interrupted"),
    ],
)
def test_how_the_run_ended(make_small: MakeRun, status: str, state: str, tag: str) -> None:
    run = make_small(rounds=1, status=status).all()
    catch_up(run)
    parent, children = runs_of(run)
    assert {one.info.status for one in (parent, *children.values())} == {state}
    assert parent.data.tags["fedmed.status"] == tag


def test_resumed_run_runs_again_and_goes_on_in_the_same_place(make_small: MakeRun) -> None:
    made = make_small(rounds=4, late=())
    made.start()
    made.round(1)
    append(made.history, RunEnded(time=made.time(1), status="interrupted", best_round=1))
    catch_up(made.folder)
    first = runs_of(made.folder)[0]
    assert first.info.status == "KILLED"
    made.start(resumed_from_round=1)
    made.round(2)
    assert catch_up(made.folder) == 2
    parent, children = runs_of(made.folder)
    assert parent.info.run_id == first.info.run_id
    assert {one.info.status for one in (parent, *children.values())} == {"RUNNING"}
    made.round(3)
    made.round(4)
    made.end()
    catch_up(made.folder)
    assert runs_of(made.folder)[0].info.status == "FINISHED"
    assert [s for name, s, *_ in everything(made.folder)[""] if name == "train/loss"] == [1, 2, 3, 4]


def test_run_that_failed_before_the_roll_call_is_tracked(make_small: MakeRun) -> None:
    made = make_small()
    append(made.history, RunEnded(time=made.time(0), status="failed: no site", best_round=0))
    assert catch_up(made.folder) == 1
    assert runs_of(made.folder)[0].info.status == "FAILED"


def test_run_deleted_in_the_store_is_made_anew(make_small: MakeRun) -> None:
    run = make_small(rounds=2).all()
    catch_up(run)
    before = everything(run)
    parent, children = runs_of(run)
    for one in (parent, *children.values()):
        client_of(run).delete_run(one.info.run_id)
    assert catch_up(run) == 4
    assert everything(run) == before


def test_values_that_are_no_number_and_names_that_are_none_are_left_out(make_small: MakeRun) -> None:
    made = make_small(rounds=1, late=())
    made.start()
    made.round(1)
    lines = made.history.read_text().splitlines()
    done = json.loads(lines[-1])
    done["train"][0]["metrics"] |= {
        "empty": [0.0, 0.0],
        "../../x": [1.0, 1.0],
        "a//b": [1.0, 1.0],
        "loss\n": [1.0, 1.0],
    }
    done["evaluation"] = []
    made.history.write_text("\n".join([*lines[:-1], json.dumps(done)]) + "\n")
    catch_up(made.folder)
    names = {name for points in everything(made.folder).values() for name, *_ in points}
    assert "train/loss" in names
    assert not [
        name for name in names if name.endswith("x") or "//" in name or "empty" in name or "dice" in name
    ]


def test_long_parameter_is_cut_and_said_to_be(make_small: MakeRun) -> None:
    run = make_small(rounds=1, shares={f"class_with_a_long_name_{i:03d}": 0.5 for i in range(100)}).all()
    catch_up(run)
    classes = runs_of(run)[0].data.params["task.classes"]
    assert len(classes) == 500
    assert classes.endswith("...")


def test_unfinished_line_waits_for_its_end(make_small: MakeRun) -> None:
    made = make_small(rounds=2, late=())
    made.start()
    made.round(1)
    whole = made.history.read_bytes()
    made.history.write_bytes(whole[:-5])
    assert catch_up(made.folder) == 1
    made.history.write_bytes(whole)
    assert catch_up(made.folder) == 1


def test_folder_with_unusual_characters(tmp_path: Path, make_run: MakeRun) -> None:
    run = make_run(rounds=1, shares=SHARES).all()
    odd = tmp_path / "a b%20#ü" / run.name
    odd.parent.mkdir()
    run.rename(odd)
    catch_up(odd)
    assert (odd.parent / "mlflow.db").is_file()
    assert "train/loss" in runs_of(odd)[0].data.metrics


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port on which nobody answers, held so that nobody else takes it."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]


def test_server_that_is_away_is_said_to_be_and_keeps_no_password(
    make_small: MakeRun, closed_port: int
) -> None:
    run = make_small(rounds=1).all()
    with pytest.raises(TrackingAway, match="catch up with `fedmed track") as away:
        catch_up(run, f"http://somebody:hunter2@127.0.0.1:{closed_port}")
    assert "hunter2" not in str(away.value)
    assert not (run / "tracking.json").exists()


def test_address_that_is_none_is_an_outage_and_no_crash(make_small: MakeRun) -> None:
    run = make_small(rounds=1).all()
    with pytest.raises(TrackingAway):
        catch_up(run, "nonsense://here")


def test_damaged_history_is_an_outage(make_small: MakeRun) -> None:
    made = make_small()
    made.history.write_bytes(b"{}\n")
    with pytest.raises(TrackingAway, match=r"history\.jsonl"):
        catch_up(made.folder)


def test_background_tracker_follows_while_the_block_runs(make_small: MakeRun) -> None:
    made = make_small(rounds=2, late=())
    with BackgroundTracker(made.folder, read_experiment_of(made), patience_seconds=120) as tracker:
        made.all()
    assert tracker.problem == ""
    assert runs_of(made.folder)[0].info.status == "FINISHED"
    assert catch_up(made.folder) == 0


def test_background_tracker_without_a_store_lets_the_block_go_on(
    make_small: MakeRun, closed_port: int
) -> None:
    made = make_small(rounds=2, late=())
    uri = f"http://127.0.0.1:{closed_port}"
    with BackgroundTracker(made.folder, read_experiment_of(made), uri=uri, patience_seconds=120) as tracker:
        made.all()
    assert "fedmed track" in tracker.problem
    assert catch_up(made.folder) == 4


def test_background_tracker_leaves_a_store_that_never_answers(make_small: MakeRun) -> None:
    made = make_small(rounds=1)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        uri = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with BackgroundTracker(
            made.folder, read_experiment_of(made), uri=uri, patience_seconds=0.2
        ) as tracker:
            made.all()
        assert "no answer in time" in tracker.problem


def test_error_in_the_block_is_not_swallowed(make_small: MakeRun) -> None:
    made = make_small(rounds=1)
    with pytest.raises(KeyError), BackgroundTracker(made.folder, read_experiment_of(made)):
        raise KeyError("mine")


def test_two_at_once_do_not_make_two_runs(make_small: MakeRun) -> None:
    run = make_small(rounds=3).all()
    faults: list[TrackingAway] = []

    def attempt() -> None:
        try:
            catch_up(run)
        except TrackingAway as error:
            faults.append(error)

    threads = [threading.Thread(target=attempt) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all("another process" in str(fault) for fault in faults)
    runs_of(run)


def test_outage_is_caught_up_with_a_real_server(make_small: MakeRun, tmp_path: Path) -> None:
    made = make_small(rounds=3)
    run = made.all()
    figures = [
        Figure(title="Patient", caption="", png=b"\x89PNG"),
        Figure(title="Chart", caption="", png=b"\x89PNG", of_patients=False),
    ]
    write_report(run, figures=figures)
    with mlflow_server(tmp_path) as start:
        with pytest.raises(TrackingAway):
            catch_up(run, start.uri)
        start()
        assert catch_up(run, start.uri) == 5
        assert catch_up(run, start.uri) == 0
        catch_up(run)
        assert everything(run, start.uri) == everything(run)
        client, (parent, _) = client_of(run, start.uri), runs_of(run, start.uri)
        pictures = {
            one.path
            for one in client.list_artifacts(parent.info.run_id, "figures")
            if one.path.endswith(".png")
        }
        assert pictures == {"figures/001.png"}
        local = client.download_artifacts(parent.info.run_id, "report.html", str(tmp_path))
        assert "/home/" not in Path(local).read_text(encoding="utf-8")


def read_experiment_of(made: Any) -> Any:
    """Before the history has begun."""
    made.history.touch()
    return read_experiment(made.folder)


class Server:
    """An ``mlflow server`` that is started when called."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder, self.uri = folder, f"http://127.0.0.1:{port}"
        self.process: subprocess.Popen[bytes] | None = None
        self.port = port

    def __call__(self) -> None:
        store, artifacts = f"sqlite:///{self.folder / 'server.db'}", self.folder / "served"
        command = [
            sys.executable,
            "-m",
            "mlflow",
            "server",
            "--host",
            "127.0.0.1",
            "--port",
            str(self.port),
            "--workers",
            "1",
        ]
        command += ["--backend-store-uri", store, "--artifacts-destination", str(artifacts)]
        environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
        with (self.folder / "server.log").open("wb") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, env=environment, start_new_session=True
            )
        for _ in range(240):
            if self.process.poll() is not None:
                pytest.skip(
                    f"mlflow server does not start here: {(self.folder / 'server.log').read_text()[-300:]}"
                )
            try:
                with urllib.request.urlopen(f"{self.uri}/health", timeout=1):  # noqa: S310
                    return
            except OSError:
                time.sleep(0.25)
        pytest.skip("mlflow server does not answer here within a minute")

    def stop(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGTERM)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()


@contextmanager
def mlflow_server(folder: Path) -> Iterator[Server]:
    with socket.socket() as finder:
        finder.bind(("127.0.0.1", 0))
        port = finder.getsockname()[1]
    server = Server(folder, port)
    try:
        yield server
    finally:
        server.stop()
