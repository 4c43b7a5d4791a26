"""The loop over sites that follow a script: who counts, which round is best, and what 'completed' may be said of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fedmed_common import wire
from fedmed_common.config import Experiment
from fedmed_common.errors import CheckpointError, Interrupted, QuorumError
from fedmed_common.metrics import Mean
from fedmed_server import history
from fedmed_server.app import RunRequest, run_federation
from fedmed_server.history import RoundDone, RunEnded
from fedmed_simulations.grid import LocalGrid

Dice = Callable[[str, int], float | None]
"""(site, round) -> the Dice it answers with; None: it fails."""


class Sites:
    """Sites that train by adding one to every parameter, and measure what the script says."""

    def __init__(
        self,
        patients: dict[str, int],
        dice: Dice,
        trains: Dice = lambda _site, _round: 1.0,
        joins: Callable[[str], bool] = lambda _site: True,
    ) -> None:
        self.patients, self.dice, self.trains, self.joins = patients, dice, trains, joins

    def grid(self) -> LocalGrid:
        """These sites as a network."""
        app = ClientApp()
        app.query("facts")(lambda message, context: self._answer(message, context, wire.Kind.FACTS))
        app.train()(lambda message, context: self._answer(message, context, wire.Kind.TRAIN))
        app.evaluate()(lambda message, context: self._answer(message, context, wire.Kind.EVALUATE))
        return LocalGrid(app, len(self.patients))

    def _answer(self, message: Message, context: Context, kind: wire.Kind) -> Message:
        site = list(self.patients)[int(context.node_config["partition-id"])]
        order = wire.unpack_order(message.content, kind)
        reply = wire.Reply(site=site, run=order.run, round=order.round, attempt=order.attempt)
        count = self.patients[site]
        if kind is wire.Kind.FACTS and self.joins(site):
            patients = dict.fromkeys(("train", "validation", "test"), count)
            reply = replace(reply, facts=wire.Facts(patients=patients, presence={}, version="1"))
        elif kind is wire.Kind.TRAIN and self.trains(site, order.round) is not None:
            delta = {name: np.ones_like(array) for name, array in order.parameters.items()}
            reply = replace(reply, delta=delta, metrics={"loss": Mean(1.0, 1.0)})
        elif kind is wire.Kind.EVALUATE and (value := self.dice(site, order.round)) is not None:
            reply = replace(reply, metrics={"dice/disc": Mean(value * count, count)})
        else:
            reply = replace(reply, code="internal", incident="0123")
        return Message(wire.pack_reply(reply), reply_to=message)


def _request(folder: Path, sites: Sites, rounds: int = 3, **federation: object) -> RunRequest:
    experiment = Experiment.model_validate(
        {
            "name": "discs",
            "rounds": rounds,
            "task": {"classes": ["disc"], "dimensions": 2},
            "data": {"patch": [16, 16]},
            "model": {"channels": [4, 8], "residual_units": 0},
            "train": {"steps": 1, "batch_size": 1, "threads": 1},
            "federation": {"update_norm_limit": 1e6, "retries": 0, **federation},
        }
    )
    folder.mkdir(exist_ok=True)
    return RunRequest(experiment=experiment, folder=folder, command="test", sites=len(sites.patients))


def test_the_absence_of_a_hard_site_makes_no_round_the_best(tmp_path: Path) -> None:
    script = {1: (0.9, 0.3), 2: (0.9, None), 3: (0.8, None), 4: (0.9, 0.31), 5: (0.95, None), 6: (0.7, 0.4)}
    sites = Sites({"easy": 9, "hard": 9}, lambda site, number: script[number][site == "hard"])
    records: list[RoundDone] = []
    request = replace(_request(tmp_path, sites, rounds=6), on_round=records.append)
    ended = run_federation(sites.grid(), request)
    assert [record.is_best for record in records] == [True, True, False, True, True, False]
    assert records[1].criterion == pytest.approx(0.9)
    assert ended.status.startswith("degraded")


def test_a_round_needs_the_least_number_of_sites(tmp_path: Path) -> None:
    sites = Sites(dict.fromkeys("abc", 9), lambda *_: 0.5, lambda site, _round: 1.0 if site == "a" else None)
    with pytest.raises(QuorumError, match="2 are needed"):
        run_federation(sites.grid(), _request(tmp_path, sites, quorum=0.3, minimum_sites=2))


def test_a_share_of_sites_is_not_rounded_up_by_arithmetic(tmp_path: Path) -> None:
    names = [f"site-{number:02d}" for number in range(25)]
    lost = set(names[:18])  # 0.28 x 25 is 7.000000000000001 in floating point
    sites = Sites(dict.fromkeys(names, 9), lambda *_: 0.5, lambda site, _round: None if site in lost else 1.0)
    ended = run_federation(sites.grid(), _request(tmp_path, sites, rounds=1, quorum=0.28))
    assert ended.status.startswith("degraded: site-00 missed the training of round 1")


@pytest.mark.parametrize(
    ("later", "sentence"),
    [
        ({"a": 9, "b": 9, "c": 9}, ""),
        ({"a": 9, "b": 9}, "c was there when training began and is not any more"),
        ({"a": 9, "b": 9, "c": 9, "d": 9}, "d was not there when training began"),
        ({"a": 9, "b": 8, "c": 9}, "b has other patients than when training began"),
    ],
)
def test_a_run_that_goes_on_with_other_sites_is_not_completed(
    later: dict[str, int], sentence: str, tmp_path: Path
) -> None:
    first = Sites({"a": 9, "b": 9, "c": 9}, lambda *_: 0.5)
    request = _request(tmp_path, first)
    with pytest.raises(Interrupted):
        run_federation(first.grid(), replace(request, on_round=lambda _record: request.stop.set()))
    again = Sites(later, lambda *_: 0.5)
    stopped = _request(tmp_path, again)  # once more, before a round is done
    stop_in_training = replace(
        stopped, watch=lambda site, _phase: stopped.stop.set() if site in "abcd" else None
    )
    with pytest.raises(Interrupted):
        run_federation(again.grid(), stop_in_training)
    ended = run_federation(again.grid(), _request(tmp_path, again))
    assert ended.status == (f"degraded: {sentence}" if sentence else "completed")


def test_an_unforeseen_fault_is_recorded_and_the_run_goes_on_later(tmp_path: Path) -> None:
    def full(_record: RoundDone) -> None:
        raise OSError(28, "No space left on device", "/data/Jane^Doe")

    sites = Sites({"a": 9, "b": 9}, lambda *_: 0.5)
    with pytest.raises(OSError, match="No space"):
        run_federation(sites.grid(), replace(_request(tmp_path, sites), on_round=full))
    last = list(history.read(tmp_path / history.FILE))[-1]
    assert isinstance(last, RunEnded)
    assert last.status == "failed: OSError"
    assert run_federation(sites.grid(), _request(tmp_path, sites)).status == "completed"


def test_a_checkpoint_of_another_network_is_refused(tmp_path: Path) -> None:
    sites = Sites({"a": 9, "b": 9}, lambda *_: 0.5)
    request = _request(tmp_path, sites)
    with pytest.raises(Interrupted):
        run_federation(sites.grid(), replace(request, on_round=lambda _record: request.stop.set()))
    wider = request.experiment.model.model_copy(update={"channels": (4, 16)})
    changed = request.experiment.model_copy(update={"model": wider})
    with pytest.raises(CheckpointError, match="the experiment was changed"):
        run_federation(sites.grid(), replace(_request(tmp_path, sites), experiment=changed))


def test_a_site_that_fails_the_roll_call_is_named(tmp_path: Path) -> None:
    sites = Sites({"a": 9, "b": 9}, lambda *_: 0.5, joins=lambda site: site != "b")
    with pytest.raises(QuorumError, match=r"roll call failed: b: failed \(internal, incident 0123\)"):
        run_federation(sites.grid(), _request(tmp_path, sites))


def test_an_order_that_flower_does_not_take_is_sent_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sites = Sites({"a": 9, "b": 9}, lambda *_: 0.5)
    grid = sites.grid()
    push, calls = grid.push_messages, iter(range(1000))
    monkeypatch.setattr(grid, "push_messages", lambda messages: [] if next(calls) == 3 else push(messages))
    ended = run_federation(grid, _request(tmp_path, sites, retries=1))
    assert next(calls) == 2 + 3 * 4 + 2 + 1
    assert ended.status == "completed"
