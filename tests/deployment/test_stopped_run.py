"""A run that the coordinator interrupts and resumes ends as if it had never stopped."""

from __future__ import annotations

import json

from fedmed_server import history
from fedmed_server.history import RoundDone, RunEnded, RunStarted
from fedmed_server.state import model_file
from fedmed_simulations.rehearsal.equality import difference


def test_a_stopped_run_goes_on_where_it_was(running) -> None:
    consortium = running.consortium
    home = ("--home", str(consortium.server))
    consortium.wait_connected()
    run = consortium.launch(running.experiment)

    def state() -> str:
        return str(json.loads(consortium.fedmed("status", run, *home, "--json"))["state"])

    consortium.wait_until(lambda: any(isinstance(r, RoundDone) for r in consortium.records(run)), "a round")
    consortium.fedmed("stop", run, *home)
    consortium.wait_until(lambda: state() == "interrupted", "the run's end")
    assert list(consortium.records(run))[-1].status == "interrupted"
    consortium.fedmed("resume", run, *home)
    assert consortium.wait_ended(run).status == "completed"
    records = list(history.read(consortium.run_folder(run) / history.FILE))
    assert [type(record) for record in records] == [
        RunStarted, RoundDone, RunEnded, RunStarted, RoundDone, RunEnded,
    ]  # fmt: skip
    assert difference(model_file(consortium.run_folder(run), "last"), model_file(running.whole, "last")) == ""
