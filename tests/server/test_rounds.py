"""The loop over sites that follow a script: who counts, which round is best, and what 'completed' may be said of."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from scripted import Sites, make_request

from fedmed_common.errors import CheckpointError, Interrupted, QuorumError
from fedmed_server import history
from fedmed_server.app import run_federation
from fedmed_server.history import RoundDone, RunEnded
from fedmed_server.state import CHECKPOINT


def test_the_absence_of_a_hard_site_makes_no_round_the_best(tmp_path: Path) -> None:
    script = {1: (0.9, 0.3), 2: (0.9, None), 3: (0.8, None), 4: (0.9, 0.31), 5: (0.95, None), 6: (0.7, 0.4)}
    sites = Sites({"easy": 9, "hard": 9}, lambda site, number: script[number][site == "hard"])
    records: list[RoundDone] = []
    request = replace(make_request(tmp_path, sites, rounds=6), on_round=records.append)
    ended = run_federation(sites.grid(), request)
    assert [record.is_best for record in records] == [True, True, False, True, True, False]
    assert records[1].criterion == pytest.approx(0.9)
    assert ended.status.startswith("degraded")


def test_a_round_needs_the_least_number_of_sites(tmp_path: Path) -> None:
    sites = Sites(dict.fromkeys("abc", 9), lambda *_: 0.5, lambda site, _round: 1.0 if site == "a" else None)
    with pytest.raises(
        QuorumError,
        match=r"round 1: 1 of 3 .*2 are needed\. b: failed .*c: failed (?s:.*)fix: .*fedmed resume",
    ):
        run_federation(sites.grid(), make_request(tmp_path, sites, quorum=0.3, minimum_sites=2))


def test_a_share_of_sites_is_not_rounded_up_by_arithmetic(tmp_path: Path) -> None:
    names = [f"site-{number:02d}" for number in range(25)]
    lost = set(names[:18])  # 0.28 x 25 is 7.000000000000001 in floating point
    sites = Sites(dict.fromkeys(names, 9), lambda *_: 0.5, lambda site, _round: None if site in lost else 1.0)
    ended = run_federation(sites.grid(), make_request(tmp_path, sites, rounds=1, quorum=0.28))
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
    request = make_request(tmp_path, first)
    with pytest.raises(Interrupted):
        run_federation(first.grid(), replace(request, on_round=lambda _record: request.stop.set()))
    again = Sites(later, lambda *_: 0.5)
    stopped = make_request(tmp_path, again)  # once more, before a round is done
    stop_in_training = replace(
        stopped, watch=lambda site, _phase: stopped.stop.set() if site in "abcd" else None
    )
    with pytest.raises(Interrupted):
        run_federation(again.grid(), stop_in_training)
    ended = run_federation(again.grid(), make_request(tmp_path, again))
    assert ended.status == (f"degraded: {sentence}" if sentence else "completed")


def test_an_unforeseen_fault_is_recorded_and_the_run_goes_on_later(tmp_path: Path) -> None:
    def full(_record: RoundDone) -> None:
        raise OSError(28, "No space left on device", "/data/Jane^Doe")

    sites = Sites({"a": 9, "b": 9}, lambda *_: 0.5)
    with pytest.raises(OSError, match="No space"):
        run_federation(sites.grid(), replace(make_request(tmp_path, sites), on_round=full))
    last = list(history.read(tmp_path / history.FILE))[-1]
    assert isinstance(last, RunEnded)
    assert last.status == "interrupted: No space left on device"
    assert run_federation(sites.grid(), make_request(tmp_path, sites)).status == "completed"


def test_a_damaged_checkpoint_is_the_runs_end_and_not_a_riddle(tmp_path: Path) -> None:
    sites = Sites({"a": 9, "b": 9}, lambda *_: 0.5)
    (tmp_path / CHECKPOINT).write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match=CHECKPOINT):
        run_federation(sites.grid(), make_request(tmp_path, sites))
    last = list(history.read(tmp_path / history.FILE))[-1]
    assert isinstance(last, RunEnded)
    assert last.status.startswith("failed: ")
    assert CHECKPOINT in last.status


def test_a_checkpoint_of_another_network_is_refused(tmp_path: Path) -> None:
    sites = Sites({"a": 9, "b": 9}, lambda *_: 0.5)
    request = make_request(tmp_path, sites)
    with pytest.raises(Interrupted):
        run_federation(sites.grid(), replace(request, on_round=lambda _record: request.stop.set()))
    wider = request.experiment.model.model_copy(update={"channels": (4, 16)})
    changed = request.experiment.model_copy(update={"model": wider})
    with pytest.raises(CheckpointError, match="the experiment was changed"):
        run_federation(sites.grid(), replace(make_request(tmp_path, sites), experiment=changed))


def test_a_site_that_fails_the_roll_call_is_named(tmp_path: Path) -> None:
    sites = Sites({"a": 9, "b": 9}, lambda *_: 0.5, joins=lambda site: site != "b")
    with pytest.raises(QuorumError, match=r"roll call failed: b: failed \(internal, incident 0123\)"):
        run_federation(sites.grid(), make_request(tmp_path, sites))


def test_an_order_that_flower_does_not_take_is_sent_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sites = Sites({"a": 9, "b": 9}, lambda *_: 0.5)
    grid = sites.grid()
    push, calls = grid.push_messages, iter(range(1000))
    monkeypatch.setattr(grid, "push_messages", lambda messages: [] if next(calls) == 3 else push(messages))
    ended = run_federation(grid, make_request(tmp_path, sites, retries=1))
    assert next(calls) == 2 + 3 * 4 + 2 + 1
    assert ended.status == "completed"
