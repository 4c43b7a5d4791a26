"""A server that steps after every few updates: in a simulation by its clock, deployed as answers come; no update is lost
without a word, and a run that was ended anywhere goes on as if it had not been."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scripted import Network, Sites, experiment, make_request, update
from superlink import SuperLink

from fedmed_common.config import Experiment
from fedmed_common.errors import Interrupted, QuorumError, TransportLost
from fedmed_common.params import Parameters
from fedmed_server import history, simulated_time
from fedmed_server.app import RunRequest, run_federation
from fedmed_server.buffered import rebased
from fedmed_server.history import RoundDone
from fedmed_server.state import RunState, load_state
from fedmed_strategies.pieces import Answer, Site

SCRIPT = Path(__file__).parents[1] / "support" / "scripted.py"
PATIENTS = {"a": 9, "b": 7, "c": 8, "d": 5, "e": 6}
THREE = {"a": 9, "b": 7, "c": 8}


@pytest.fixture(autouse=True)
def _hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedmed_server.app._DEPLOYED_POLL_SECONDS", 0.001)
    monkeypatch.setattr("fedmed_server.app._POLL_SECONDS", 0.001)


def fedbuff(**settings: object) -> dict[str, object]:
    return {"name": "fedbuff", "settings": {"buffered": settings}}


def simulated(folder: Path, recipe: dict[str, object], spread: float = 0.8, rounds: int = 8) -> RunRequest:
    """A run of five sites of unequal speed."""
    folder.mkdir(exist_ok=True)
    document = experiment(rounds, recipe).model_dump(mode="json", exclude_none=True)
    document["simulation"] = {"federation": str(folder), "pace_spread": spread}
    return RunRequest(
        experiment=Experiment.model_validate(document), folder=folder, command="test", sites=len(PATIENTS)
    )


def deployed(folder: Path, sites: Sites, recipe: dict[str, object], **federation: Any) -> RunRequest:
    request = make_request(folder, sites, recipe=recipe, **{"roll_call_seconds": 0.2, **federation})
    return replace(request, expected=tuple(sites.patients))


def records(folder: Path) -> list[RoundDone]:
    return [record for record in history.read(folder / history.FILE) if isinstance(record, RoundDone)]


def who(record: RoundDone) -> list[tuple[str, int, str]]:
    return [(result.site, result.staleness, result.code or result.outcome) for result in record.train]


def checkpoint(folder: Path) -> RunState:
    state = load_state(folder)
    assert state is not None
    return state


def assert_equal(one: RunState, other: RunState) -> None:
    """Bit for bit, with what is at work."""
    for first, second in ((one.parameters, other.parameters), *_versions(one, other)):
        assert list(first) == list(second)
        for name in first:
            np.testing.assert_array_equal(first[name], second[name])
    assert (one.outstanding, one.clock) == (other.outstanding, other.clock)


def _versions(one: RunState, other: RunState) -> Iterator[tuple[Parameters, Parameters]]:
    assert sorted(one.versions) == sorted(other.versions)
    return ((one.versions[number], other.versions[number]) for number in one.versions)


@pytest.mark.parametrize("spread", [0.0, 0.8])
def test_with_a_buffer_of_all_sites_it_is_fedavg(spread: float, tmp_path: Path) -> None:
    for name, recipe in (("plain", {"name": "fedavg"}), ("buffered", fedbuff(buffer=5))):
        sites = Sites(PATIENTS)
        ended = run_federation(sites.grid(), simulated(tmp_path / name, recipe, spread))
        assert ended.status == "completed"
    plain, other = (checkpoint(tmp_path / name) for name in ("plain", "buffered"))
    assert_equal(plain, other)
    assert [who(record) for record in records(tmp_path / "plain")] == [
        who(record) for record in records(tmp_path / "buffered")
    ]


def test_steps_are_those_of_the_algorithm(tmp_path: Path) -> None:
    """Algorithm 1 once more, on its own: events in time, in double precision."""
    request = simulated(tmp_path / "run", fedbuff(buffer=2, concurrency=4, exponent=0.5, most_staleness=20))
    sites, states = Sites(PATIENTS), list[RunState]()
    run_federation(sites.grid(), replace(request, on_state=states.append))
    members = {member.name: member for member in sites.roster()}
    model = {name: array.astype(np.float64) for name, array in _start(request.experiment).items()}
    for record, state in zip(records(request.folder), states, strict=True):
        if state.round < request.experiment.rounds:
            assert len(state.outstanding) + len(record.train) == 4
        total = sum(PATIENTS[site] for site, *_ in who(record))
        step = {name: np.zeros_like(array) for name, array in model.items()}
        for site, staleness, _ in who(record):
            began = record.round - staleness
            sent = states[began - 2].parameters if began > 1 else _start(request.experiment)
            for name, array in update(site, began, sent).items():
                step[name] += PATIENTS[site] * array / np.sqrt(1 + staleness)
        model = {name: array + step[name] / total for name, array in model.items()}
        for name, array in model.items():
            np.testing.assert_allclose(state.parameters[name], array, rtol=1e-4, atol=1e-5)
        model = {name: state.parameters[name].astype(np.float64) for name in model}
    ends = [record.clock for record in records(request.folder)]
    assert ends == sorted(ends)
    first = sorted(simulated_time.of_order(request.experiment, member, 1) for member in members.values())
    assert ends[0] in first


def _start(asked: Experiment) -> Parameters:
    from fedmed_common import params
    from fedmed_common.models import build_model

    return params.from_model(build_model(asked))


def test_slow_sites_count_less_often_and_their_age_is_told(tmp_path: Path) -> None:
    request = simulated(tmp_path / "run", fedbuff(buffer=1, most_staleness=30), spread=0.5, rounds=30)
    assert run_federation(Sites(PATIENTS).grid(), request).status == "completed"
    pace = {
        member.name: np.mean([simulated_time.of_order(request.experiment, member, n) for n in range(1, 31)])
        for member in Sites(PATIENTS).roster()
    }
    counts = dict.fromkeys(PATIENTS, 0)
    for record in records(request.folder):
        for site, *_ in who(record):
            counts[site] += 1
    slowest, fastest = max(pace, key=pace.__getitem__), min(pace, key=pace.__getitem__)
    assert counts[slowest] < counts[fastest]
    ages = [age for record in records(request.folder) for site, age, _ in who(record) if site == slowest]
    assert max(ages) > 3


@pytest.mark.parametrize("stop_after", [1, 3, 6])
def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(stop_after: int, tmp_path: Path) -> None:
    recipe = fedbuff(buffer=2, most_staleness=2)
    whole = simulated(tmp_path / "whole", recipe)
    run_federation(Sites(PATIENTS).grid(), replace(whole, on_state=_only_at(7, tmp_path / "seventh")))
    parts = simulated(tmp_path / "parts", recipe)
    seen: list[str] = []

    def in_the_middle(site: str, phase: str) -> None:
        """Stop when one of the updates after the round is in."""
        done = len(records(parts.folder))
        seen.append(site)
        if done == stop_after and phase == "ok":
            parts.stop.set()

    with pytest.raises(Interrupted):
        run_federation(Sites(PATIENTS).grid(), replace(parts, watch=in_the_middle))
    assert checkpoint(parts.folder).outstanding
    again = simulated(tmp_path / "parts", recipe)
    run_federation(Sites(PATIENTS).grid(), replace(again, on_state=_only_at(7, tmp_path / "other seventh")))
    assert_equal(checkpoint(whole.folder), checkpoint(parts.folder))
    assert_equal(checkpoint(tmp_path / "seventh"), checkpoint(tmp_path / "other seventh"))
    assert [who(record) for record in records(whole.folder)] == [
        who(record) for record in records(parts.folder)
    ]


def _only_at(number: int, folder: Path) -> Any:
    """Keep a copy of the checkpoint of one round."""
    from fedmed_server.state import save_state

    def keep(state: RunState) -> None:
        if state.round == number:
            folder.mkdir()
            save_state(folder, state)

    return keep


def test_what_is_too_old_is_dropped_and_told_and_old_versions_are_not_kept(tmp_path: Path) -> None:
    request = simulated(tmp_path / "run", fedbuff(buffer=1, most_staleness=1), spread=1.5, rounds=30)
    sites, states = Sites(PATIENTS), list[RunState]()
    ended = run_federation(sites.grid(), replace(request, on_state=states.append))
    parts = [part for record in records(request.folder) for part in who(record)]
    dropped = [(site, age) for site, age, code in parts if code == "stale"]
    assert dropped
    assert all(age > 1 for _, age in dropped)
    assert all(age <= 1 for _, age, code in parts if code == "ok")
    assert ended.status.startswith("degraded: ")
    assert ended.status.count("(late: stale)") == len(dropped)
    assert {len(state.versions) for state in states} <= {0, 1}
    assert max(len({order.round for order in state.outstanding}) for state in states) > 1
    orders = [(site, number) for site, kind, number, _ in sites.asked if kind == "train"]
    assert len(orders) == len(set(orders))


@pytest.mark.parametrize(("quorum", "fine"), [(1.0, False), (0.5, True)])
def test_the_quorum_is_of_those_whose_answer_fell_into_the_step(
    quorum: float, fine: bool, tmp_path: Path
) -> None:
    sites = Sites(PATIENTS, trains=lambda site, _round: None if site == "a" else 1.0)
    request = make_request(tmp_path / "run", sites, recipe=fedbuff(buffer=2), quorum=quorum)
    if fine:
        ended = run_federation(sites.grid(), request)
        assert ended.status.startswith("degraded: a missed the training of round 1 (failed: internal)")
        assert who(records(request.folder)[0])[0] == ("a", 0, "internal")
    else:
        with pytest.raises(QuorumError, match=r"round 1: 2 of 3 sites gave .*, 3 are needed\. a: failed"):
            run_federation(sites.grid(), request)


def test_a_step_is_taken_with_fewer_where_nobody_is_at_work_and_the_quorum_is_met(tmp_path: Path) -> None:
    sites = Sites(THREE, trains=lambda site, _round: None if site == "a" else 1.0)
    request = make_request(tmp_path / "run", sites, recipe=fedbuff(buffer=3), quorum=0.6)
    assert run_federation(sites.grid(), request).status.startswith("degraded")
    assert [len(record.train) for record in records(request.folder)] == [3, 3, 3]


def test_a_buffer_that_cannot_be_filled_is_said(tmp_path: Path) -> None:
    sites = Sites(THREE)
    with pytest.raises(QuorumError, match=r"3 sites can train, 3 of them at once, .* 4 updates"):
        run_federation(sites.grid(), make_request(tmp_path / "run", sites, recipe=fedbuff(buffer=4)))


class Pace:
    """Flower's server, whose sites' replies come when the test says: each after so many looks, but for that to the roll call."""

    def __init__(self, sites: Sites, looks: dict[str, int]) -> None:
        self.looks, self.left = looks, dict.fromkeys(looks, 1)
        self.server = SuperLink(sites, held_back=self._is_held_back)

    def _is_held_back(self, site: str) -> bool:
        self.left[site] -= 1
        if self.left[site] > 0:
            return True
        self.left[site] = self.looks[site]
        return False


def test_deployed_sites_are_taken_as_they_come(tmp_path: Path) -> None:
    sites = Sites(THREE)
    pace = Pace(sites, {"a": 1, "b": 1, "c": 9})
    request = deployed(tmp_path / "run", sites, fedbuff(buffer=2), evaluate_every=3)
    states = list[RunState]()
    ended = run_federation(pace.server.grid(), replace(request, on_state=states.append))
    assert ended.status == "completed"
    assert [sorted(who(record)) for record in records(request.folder)] == [
        [("a", 0, "ok"), ("b", 0, "ok")],
        [("a", 0, "ok"), ("b", 0, "ok")],
        [("a", 0, "ok"), ("b", 0, "ok")],
    ]
    assert [[(order.site, order.round) for order in state.outstanding] for state in states] == [
        [("c", 1)],
        [("c", 1)],
        [],
    ]
    assert [list(state.versions) for state in states] == [[1], [1], []]


def test_a_deployed_site_that_is_too_late_for_its_version_is_told_and_asked_anew(tmp_path: Path) -> None:
    sites = Sites(THREE)
    pace = Pace(sites, {"a": 1, "b": 1, "c": 4})
    request = deployed(tmp_path / "run", sites, fedbuff(buffer=2, most_staleness=0), evaluate_every=3)
    ended = run_federation(pace.server.grid(), replace(request, experiment=_longer(request, 8)))
    told = [part for record in records(request.folder) for part in who(record)]
    stale = [age for site, age, code in told if (site, code) == ("c", "stale")]
    assert stale
    assert min(stale) > 0
    assert not any(site == "c" and code == "ok" and age for site, age, code in told)
    assert ended.status.count("c missed the training of round") == len(stale)
    rounds = [number for site, kind, number, _ in sites.asked if (site, kind) == ("c", "train")]
    assert len(rounds) > 1
    assert rounds == sorted(set(rounds))


def _longer(request: RunRequest, rounds: int) -> Experiment:
    return request.experiment.model_copy(update={"rounds": rounds})


@pytest.mark.parametrize(
    "fault", ["not taken", "push fails", "pull fails", "lost", "away", "restarted", "slow", "twice"]
)
def test_what_befalls_a_message_costs_nothing(fault: str, tmp_path: Path) -> None:
    sites = Sites(THREE)
    network = Network(sites, {("b", "train", 2): fault})
    ended = run_federation(network, deployed(tmp_path / "run", sites, fedbuff(buffer=2)))
    assert network.faults == {}
    assert ended.status == "completed"
    assert all(len(record.train) == 2 for record in records(tmp_path / "run"))


def test_a_deployed_site_that_is_lost_is_named(tmp_path: Path) -> None:
    sites = Sites(THREE)
    network = Network(sites, {("b", "train", 1): "dropped"})
    request = deployed(
        tmp_path / "run", sites, fedbuff(buffer=3, most_staleness=0), quorum=0.5, deadline_seconds=0.2
    )
    ended = run_federation(network, request)
    assert ended.status == "degraded: b missed the training of round 1 (late: deadline)"


def test_a_reply_to_another_version_is_rejected(tmp_path: Path) -> None:
    sites = Sites(THREE)
    network = Network(sites, {("b", "train", 2): "old"})
    request = deployed(tmp_path / "run", sites, fedbuff(buffer=3), quorum=0.5)
    ended = run_federation(network, request)
    assert ended.status == "degraded: b missed the training of round 2 (rejected: reply of an old round)"


def test_a_site_that_is_revoked_is_not_waited_for(tmp_path: Path) -> None:
    sites = Sites(THREE)
    network = Network(sites, {("b", "train", 2): "dropped"})
    request = replace(
        deployed(tmp_path / "run", sites, fedbuff(buffer=2), quorum=0.5),
        is_revoked=lambda site: site == "b" and ("b", "train", 2) not in network.faults,
    )
    ended = run_federation(network, request)
    assert "b missed the training of round 3 (refused: revoked)" in ended.status
    assert [number for site, kind, number, _ in sites.asked if (site, kind) == ("b", "train")] == [1]


def test_a_deployed_run_that_goes_on_asks_for_the_same_orders(tmp_path: Path) -> None:
    sites = Sites(THREE)
    pace = Pace(sites, {"a": 1, "b": 1, "c": 10**6})
    request = deployed(tmp_path / "run", sites, fedbuff(buffer=2), evaluate_every=3)
    with pytest.raises(Interrupted):
        run_federation(pace.server.grid(), replace(request, on_round=lambda record: request.stop.set()))
    assert [(order.site, order.round) for order in checkpoint(request.folder).outstanding] == [("c", 1)]
    pace.looks["c"] = pace.left["c"] = 1
    sites.asked.clear()
    again = deployed(tmp_path / "run", sites, fedbuff(buffer=2), evaluate_every=3)
    assert run_federation(pace.server.grid(), again).status == "completed"
    assert ("c", "train", 1, 0) in sites.asked
    assert ("c", 1, "ok") in who(records(request.folder)[1])


def test_a_deployed_run_that_goes_on_after_too_long_says_whose_update_is_too_old(tmp_path: Path) -> None:
    sites = Sites(THREE)
    pace = Pace(sites, {"a": 1, "b": 1, "c": 10**6})
    recipe = fedbuff(buffer=2, most_staleness=0)
    request = deployed(tmp_path / "run", sites, recipe, evaluate_every=3)
    with pytest.raises(Interrupted):
        run_federation(pace.server.grid(), replace(request, on_round=lambda record: request.stop.set()))
    pace.looks["c"] = pace.left["c"] = 1
    ended = run_federation(pace.server.grid(), deployed(tmp_path / "run", sites, recipe, evaluate_every=3))
    assert ended.status == "degraded: c missed the training of round 2 (late: stale)"


def test_a_run_that_loses_its_network_is_interrupted_and_goes_on(tmp_path: Path) -> None:
    sites = Sites(THREE)
    request = deployed(tmp_path / "run", sites, fedbuff(buffer=2))
    with pytest.raises(TransportLost):
        run_federation(Network(sites, {("b", "train", 2): "over"}), request)
    assert run_federation(Network(sites), request).status == "completed"


def test_a_server_that_is_killed_in_the_middle_of_a_step_goes_on_bit_identical(tmp_path: Path) -> None:
    recipe, sites = fedbuff(buffer=2), Sites(THREE)
    whole = make_request(tmp_path / "whole", sites, recipe=recipe)
    run_federation(sites.grid(), whole)
    folder, plan = tmp_path / "run", tmp_path / "plan.json"
    fault = {
        "point": "aggregating",
        "target": str(folder / "run.pid"),
        "signal": "SIGKILL",
        "round": 2,
        "id": "one",
    }
    (tmp_path / "fired").mkdir()
    plan.write_text(json.dumps({"faults": [fault], "fired": str(tmp_path / "fired")}))
    killed = subprocess.run(
        [sys.executable, str(SCRIPT), str(folder), json.dumps(recipe)],
        env={**os.environ, "FEDMED_FAILPOINTS": str(plan)},
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert checkpoint(folder).round == 1
    assert run_federation(sites.grid(), make_request(folder, sites, recipe=recipe)).status == "completed"
    assert_equal(checkpoint(whole.folder), checkpoint(folder))


def test_running_statistics_say_how_things_are_and_not_by_how_much_to_move() -> None:
    began = {"norm.running_mean": np.float32([1.0]), "norm.running_var": np.float32([4.0])}
    now = {"norm.running_mean": np.float32([3.0]), "norm.running_var": np.float32([2.0])}
    delta = {
        "w": np.float32([0.5]),
        "norm.running_mean": np.float32([0.25]),
        "norm.running_var": np.float32([-3.5]),
    }
    answer = Answer(site=Site(name="a", patients=1), delta=delta, staleness=2)
    moved = rebased(answer, began, now).delta
    assert moved["w"] == 0.5
    for name, array in began.items():
        np.testing.assert_array_equal(now[name] + moved[name], array + delta[name])
    fresh = replace(answer, staleness=0)
    assert rebased(fresh, began, now) is fresh
