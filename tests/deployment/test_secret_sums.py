"""Secure aggregation between real processes: with certified keys, through kills, and to the same bits as in a simulation."""

from __future__ import annotations

import tomllib
from pathlib import Path

import tomli_w

from fedmed_server import history
from fedmed_server.history import RunEnded
from fedmed_server.state import model_file
from fedmed_simulations.rehearsal.equality import difference
from fedmed_simulations.rehearsal.faults import Fault
from fedmed_simulations.rehearsal.rehearse import inline_run


def _permit_two(file: Path) -> str:
    """Let the site take part in a sum of two; what was there before."""
    before = file.read_text()
    document = tomllib.loads(before)
    document["policy"] = {**document.get("policy", {}), "least_sites": 2}
    file.write_text(tomli_w.dumps(document))
    return before


def test_killed_in_every_stage_the_secret_sum_is_that_of_a_simulation(running, tmp_path: Path) -> None:
    consortium, (one, other) = running.consortium, running.consortium.names
    document = tomllib.loads(running.experiment.read_text())
    document["secure_aggregation"], document["compression"] = {"dropouts": 0}, {"down": "int8"}
    secret = tmp_path / "secret.toml"
    secret.write_text(tomli_w.dumps(document))
    homes = [consortium.site(name) for name in consortium.names]
    simulated = [consortium.folder / "federation" / name for name in consortium.names]
    files = [folder / "site.toml" for folder in (*homes, *simulated)]
    before = [_permit_two(file) for file in files]
    try:
        faults = [
            Fault(role="worker", point="training", signal="SIGKILL", round=1, site=one),
            Fault(role="worker", point="after-seal", signal="SIGKILL", round=1, site=other),
            Fault(role="serverapp", point="aggregating", signal="SIGKILL", round=2, site=one),
            Fault(role="serverapp", point="writing-checkpoint", signal="SIGKILL", round=2, site=one),
        ]
        running.faults.plan(consortium, faults)
        consortium.wait_connected()
        run = consortium.launch(secret)
        assert consortium.wait_ended(run).status == "completed"
        assert [fault.name for fault in faults if running.faults.fired(fault) is None] == []
        simulation = inline_run(secret, tmp_path / "runs")
    finally:
        running.faults.plan(consortium, [])
        for file, text in zip(files, before, strict=True):
            file.write_text(text)
    ended = list(history.read(simulation / history.FILE))[-1]
    assert isinstance(ended, RunEnded)
    assert ended.status == "completed"
    folder = consortium.run_folder(run)
    assert difference(model_file(folder, "last"), model_file(simulation, "last")) == ""
    plain = model_file(running.whole, "last")
    assert difference(model_file(folder, "last"), plain) != ""
