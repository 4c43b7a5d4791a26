"""Hospitals that are real processes give the weights of a simulation, whatever ends on the way."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from fedmed_client.site.audit import AuditLog
from fedmed_common.config import Intensity, RecipeChoice, Splits
from fedmed_common.loading import load_experiment
from fedmed_server import history
from fedmed_server.history import RoundDone, RunEnded, RunStarted
from fedmed_server.state import model_file
from fedmed_server.survey.sheet import read_sheet
from fedmed_server.tracking import tracked_rounds
from fedmed_simulations.rehearsal.consortium import write_experiment
from fedmed_simulations.rehearsal.equality import difference
from fedmed_simulations.rehearsal.faults import Fault
from fedmed_simulations.rehearsal.rehearse import inline_run
from fedmed_simulations.rehearsal.verdict import judge

SCRIPTS = Path(__file__).parents[2] / "deploy" / "backup"


def test_a_deployed_run_equals_the_simulated_one(running, tmp_path: Path) -> None:
    records = list(history.read(running.whole / history.FILE))
    assert isinstance(records[-1], RunEnded)
    assert records[-1].status == "completed"
    assert [record.round for record in records if isinstance(record, RoundDone)] == [1, 2]
    simulated = inline_run(running.experiment, tmp_path / "runs")
    for model in ("last", "best"):
        assert difference(model_file(running.whole, model), model_file(simulated, model)) == ""
    assert tracked_rounds(running.whole, load_experiment(running.experiment)) == {1, 2}


def test_processes_that_end_cost_time_and_nothing_else(running) -> None:
    """Six cases of the kill matrix in one run: each process at least once, by either signal."""
    consortium, (one, other) = running.consortium, running.consortium.names
    faults = [
        Fault(role="link", point="after-send", signal="SIGKILL", round=1, site=one),
        Fault(role="worker", point="after-seal", signal="SIGKILL", round=1, site=other),
        Fault(role="serverapp", point="aggregating", signal="SIGKILL", round=1, site=one),
        Fault(role="worker", point="training", signal="SIGTERM", round=2, site=one),
        Fault(role="superlink", point="before-seal", signal="SIGKILL", round=2, site=other),
        Fault(role="serverapp", point="writing-checkpoint", signal="SIGTERM", round=2, site=one),
    ]
    running.faults.plan(consortium, faults)
    run = consortium.launch(running.experiment)
    assert consortium.wait_ended(run).status == "completed"
    assert [fault.name for fault in faults if running.faults.fired(fault) is None] == []
    assert {
        check.what: check.problems for check in judge(consortium, run, running.whole) if check.problems
    } == {}


def test_machines_that_stop_or_lose_power_go_on_with_the_run(running) -> None:
    consortium, name = running.consortium, running.consortium.names[1]
    running.faults.plan(consortium, [])
    consortium.wait_connected()
    run = consortium.launch(running.experiment)

    def reached(kind: type[RunStarted | RoundDone]) -> bool:
        return any(isinstance(record, kind) for record in consortium.records(run))

    consortium.wait_until(lambda: reached(RunStarted), "a roll call")
    assert consortium.stop(name) == 0
    consortium.start_site(name)
    consortium.wait_until(lambda: reached(RoundDone), "a round")
    consortium.kill("server")
    consortium.start_server()
    assert consortium.wait_ended(run).status == "completed"
    assert difference(model_file(consortium.run_folder(run), "last"), model_file(running.whole, "last")) == ""
    for site in consortium.names:
        AuditLog(consortium.site(site)).verify()


def test_a_stopped_run_goes_on_where_it_was(running) -> None:
    """One that the coordinator interrupts and resumes ends as if it had never stopped."""
    consortium, site = running.consortium, running.consortium.names[0]
    home = ("--home", str(consortium.server))
    held = Fault(role="worker", point="training", signal="SIGSTOP", round=2, site=site)
    running.faults.plan(consortium, [held])
    consortium.wait_connected()
    run = consortium.launch(running.experiment)

    def state() -> str:
        return str(json.loads(consortium.fedmed("status", run, *home, "--json"))["state"])

    consortium.wait_until(lambda: running.faults.fired(held) is not None, "training in round 2")
    consortium.fedmed("stop", run, *home)
    consortium.wait_until(lambda: isinstance(list(consortium.records(run))[-1], RunEnded), "the last record")
    worker = consortium.pid(consortium.site(site), "worker")
    assert worker is not None
    os.kill(worker, signal.SIGCONT)
    consortium.wait_until(lambda: state() == "interrupted", "the run's end")
    assert list(consortium.records(run))[-1].status == "interrupted"
    consortium.fedmed("resume", run, *home)
    assert consortium.wait_ended(run).status == "completed"
    records = list(history.read(consortium.run_folder(run) / history.FILE))
    parts = [type(record) for record in records if not isinstance(record, RoundDone)]
    assert parts == [RunStarted, RunEnded, RunStarted, RunEnded]
    assert [record.round for record in records if isinstance(record, RoundDone)] == [1, 2]
    assert difference(model_file(consortium.run_folder(run), "last"), model_file(running.whole, "last")) == ""


def test_a_restored_server_ends_the_run_with_the_same_weights(running, tmp_path: Path) -> None:
    """A server that is lost in the middle of a run, and restored from a backup that was made while it ran."""
    consortium = running.consortium
    consortium.wait_connected()
    run = consortium.launch(running.experiment)
    consortium.wait_until(lambda: any(isinstance(r, RoundDone) for r in consortium.records(run)), "a round")
    command = [
        "env",
        f"PYTHON={sys.executable}",
        SCRIPTS / "backup.sh",
        consortium.server,
        tmp_path,
        "--with-keys",
    ]
    made = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    consortium.kill("server")
    shutil.rmtree(consortium.server)
    subprocess.run([SCRIPTS / "restore.sh", made.stdout.strip(), consortium.server], check=True, timeout=120)
    consortium.start_server()
    assert consortium.wait_ended(run).status == "completed"
    for kind in ("best", "last"):
        ended = model_file(consortium.run_folder(run), kind)
        assert difference(ended, model_file(running.whole, kind)) == ""


def test_a_run_with_a_buffer_waits_for_nobody_and_outlives_its_process(running, tmp_path: Path) -> None:
    consortium, (one, other) = running.consortium, running.consortium.names
    whole = load_experiment(running.experiment)
    changed = {
        "rounds": 3,
        "recipe": RecipeChoice(name="fedbuff", settings={"buffered": {"buffer": 1}}),
        "federation": whole.federation.model_copy(update={"evaluate_every": 3, "minimum_sites": 1}),
    }
    file = tmp_path / "buffered.toml"
    write_experiment(whole.model_copy(update=changed), running.experiment.parent / "federation", file)
    fault = Fault(role="serverapp", point="aggregating", signal="SIGKILL", round=2, site=one)
    running.faults.plan(consortium, [fault], run="buffered")
    consortium.wait_connected()
    run = consortium.launch(file)
    assert consortium.wait_ended(run).status == "completed"
    assert running.faults.fired(fault, run="buffered") is not None
    done = [record for record in consortium.records(run) if isinstance(record, RoundDone)]
    assert [len(record.train) for record in done] == [1, 1, 1]
    assert {result.site for record in done for result in record.train} <= {one, other}
    assert {result.site for result in done[-1].evaluation} == {one, other}


def test_a_survey_is_answered_by_hospitals_as_by_a_simulation(running, tmp_path: Path) -> None:
    consortium, whole = running.consortium, load_experiment(running.experiment)
    running.faults.plan(consortium, [])
    consortium.wait_connected()
    data = whole.data.model_copy(
        update={
            "spacing_mm": None,
            "intensity": Intensity(kind="window", low=-1024.0, high=3071.0),
            "splits": Splits(validation=0.0, test=0.0),
        }
    )
    changed = {"rounds": 0, "data": data, "recipe": RecipeChoice(name="survey")}
    file = tmp_path / "survey.toml"
    write_experiment(whole.model_copy(update=changed), consortium.folder / "federation", file)
    run = consortium.launch(file)
    assert consortium.wait_ended(run).status == "completed"
    deployed, simulated = (
        read_sheet(folder) for folder in (consortium.run_folder(run), inline_run(file, tmp_path / "runs"))
    )
    assert deployed.model_dump(exclude={"run"}) == simulated.model_dump(exclude={"run"})
    assert "Data sheet" in consortium.wait_reported(run).read_text()
