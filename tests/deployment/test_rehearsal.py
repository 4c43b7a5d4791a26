"""Hospitals that are real processes give the weights of a simulation, whatever ends on the way."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedmed_common.loading import load_experiment
from fedmed_server import history
from fedmed_server.history import RoundDone, RunEnded
from fedmed_server.state import model_file
from fedmed_server.tracking import tracked_rounds
from fedmed_simulations.rehearsal.equality import difference
from fedmed_simulations.rehearsal.faults import Fault, Role, Signal, run_with_fault
from fedmed_simulations.rehearsal.rehearse import inline_run


def test_a_deployed_run_equals_the_simulated_one(running, tmp_path: Path) -> None:
    records = list(history.read(running.whole / history.FILE))
    assert isinstance(records[-1], RunEnded)
    assert records[-1].status == "completed"
    assert [record.round for record in records if isinstance(record, RoundDone)] == [1, 2]
    simulated = inline_run(running.experiment, tmp_path / "runs")
    for model in ("last", "best"):
        assert difference(model_file(running.whole, model), model_file(simulated, model)) == ""
    assert tracked_rounds(running.whole, load_experiment(running.experiment)) == {1, 2}


@pytest.mark.parametrize(
    ("role", "point", "signal"),
    [
        ("superlink", "training", "SIGKILL"),
        ("serverapp", "aggregating", "SIGKILL"),
        ("serverapp", "writing-checkpoint", "SIGTERM"),
        ("link", "after-send", "SIGKILL"),
        ("worker", "training", "SIGTERM"),
        ("worker", "after-seal", "SIGKILL"),
    ],
)
def test_a_process_that_ends_costs_time_and_nothing_else(
    running, role: Role, point: str, signal: Signal
) -> None:
    running.consortium.wait_connected()
    fault = Fault(role=role, point=point, signal=signal, round=1, site=running.consortium.names[0])
    outcome = run_with_fault(running.consortium, running.faults, fault, running.experiment, running.whole)
    assert (outcome.ended.status, outcome.difference) == ("completed", "")


def test_a_server_that_loses_its_power_goes_on_with_the_run(running) -> None:
    consortium = running.consortium
    consortium.wait_connected()
    run = consortium.launch(running.experiment)
    consortium.wait_until(lambda: any(isinstance(r, RoundDone) for r in consortium.records(run)), "a round")
    consortium.kill("server")
    consortium.start_server()
    assert consortium.wait_ended(run).status == "completed"
    assert difference(model_file(consortium.run_folder(run), "last"), model_file(running.whole, "last")) == ""


def test_a_hospital_that_is_restarted_goes_on_with_the_run(running) -> None:
    consortium = running.consortium
    name = consortium.names[1]
    consortium.wait_connected()
    run = consortium.launch(running.experiment)
    consortium.wait_until(
        lambda: any(isinstance(r, history.RunStarted) for r in consortium.records(run)), "a roll call"
    )
    assert consortium.stop(name) == 0
    consortium.start_site(name)
    assert consortium.wait_ended(run).status == "completed"
    assert difference(model_file(consortium.run_folder(run), "last"), model_file(running.whole, "last")) == ""
