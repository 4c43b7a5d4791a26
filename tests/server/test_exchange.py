"""A network that loses, repeats and mixes up messages costs no site its part, and the weights do not show it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from scripted import VERSION, Network, Sites, make_request, play_round

from fedmed_common.errors import Interrupted, QuorumError, TransportLost
from fedmed_server import history
from fedmed_server.app import RunRequest, run_federation
from fedmed_server.history import RoundDone, RunEnded
from fedmed_server.state import load_state

SCRIPT = Path(__file__).parents[1] / "support" / "scripted.py"
PATIENTS = {"a": 9, "b": 7, "c": 8}


@pytest.fixture(autouse=True)
def _hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedmed_server.app._DEPLOYED_POLL_SECONDS", 0.001)
    monkeypatch.setattr("fedmed_server.app._POLL_SECONDS", 0.001)


def _sites() -> Sites:
    return Sites(PATIENTS)


def _deployed(folder: Path, sites: Sites, **federation: object) -> RunRequest:
    request = make_request(folder, sites, **{"roll_call_seconds": 0.2, **federation})
    return replace(request, expected=tuple(sites.patients))


def _weights(folder: Path) -> dict[str, np.ndarray]:
    return load_file(folder / "models" / "last.safetensors")


def _assert_equal(first: Path, second: Path) -> None:
    a, b = _weights(first), _weights(second)
    assert list(a) == list(b)
    for name in a:
        np.testing.assert_array_equal(a[name], b[name])


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing befell."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    sites = _sites()
    assert run_federation(sites.grid(), make_request(folder, sites)).status == "completed"
    return folder


@pytest.mark.parametrize(
    "fault",
    [
        "not taken",
        "push fails",
        "pull fails",
        "lost",
        "away",
        "restarted",
        "slow",
        "twice",
        "mixed up",
        "restarts c",
    ],
)
@pytest.mark.parametrize("kind", ["train", "evaluate"])
def test_what_befalls_a_message_costs_nothing(
    fault: str, kind: str, tmp_path: Path, undisturbed: Path
) -> None:
    sites = _sites()
    network = Network(sites, {("b", kind, 2): fault})
    ended = run_federation(network, _deployed(tmp_path / "run", sites))
    assert network.faults == {}
    assert ended.status == "completed"
    _assert_equal(tmp_path / "run", undisturbed)


def test_all_faults_in_one_run_cost_nothing(tmp_path: Path, undisturbed: Path) -> None:
    sites = _sites()
    faults = {
        ("a", "query", 0): "away", ("b", "query", 0): "lost", ("c", "query", 0): "not taken",
        ("a", "train", 1): "restarts b", ("c", "train", 1): "away",
        ("a", "train", 2): "mixed up", ("b", "train", 2): "restarted", ("c", "train", 2): "lost",
        ("a", "train", 3): "twice", ("b", "train", 3): "push fails", ("c", "evaluate", 3): "away",
    }  # fmt: skip
    network = Network(
        sites,
        {(site, kind.replace("query", "query.facts"), n): what for (site, kind, n), what in faults.items()},
    )
    ended = run_federation(network, _deployed(tmp_path / "run", sites))
    assert network.faults == {}
    assert ended.status == "completed"
    _assert_equal(tmp_path / "run", undisturbed)


def test_a_later_sites_restart_is_noticed_while_the_first_is_awaited(tmp_path: Path) -> None:
    sites = _sites()
    network = Network(sites, {("a", "train", 1): "restarts c"})
    run_federation(network, _deployed(tmp_path / "run", sites))
    trained = [
        (site, attempt) for site, kind, number, attempt in sites.asked if (kind, number) == ("train", 1)
    ]
    assert trained == [("a", 0), ("b", 0), ("c", 1)]


def test_a_failure_of_the_site_is_asked_again_as_often_as_the_experiment_says(tmp_path: Path) -> None:
    tries = iter(range(100))
    sites = Sites(PATIENTS, trains=lambda site, _round: None if site == "b" and next(tries) < 2 else 1.0)
    ended = run_federation(Network(sites), _deployed(tmp_path / "run", sites, retries=2))
    assert ended.status == "completed"
    tries = iter(range(100))
    ended = run_federation(Network(sites), _deployed(tmp_path / "less", sites, retries=1, quorum=0.5))
    assert ended.status == "degraded: b missed the training of round 1 (failed: internal)"


@pytest.mark.parametrize("rule", ["approval_pending", "window", "disk"])
def test_a_site_that_says_not_now_is_asked_until_it_says_yes(
    rule: str, tmp_path: Path, undisturbed: Path
) -> None:
    sites = _sites()
    times = iter(range(100))
    sites.refuse = lambda site, order: rule if (site, order.round) == ("b", 2) and next(times) < 3 else ""
    phases: list[tuple[str, str]] = []
    request = replace(
        _deployed(tmp_path / "run", sites), watch=lambda site, phase: phases.append((site, phase))
    )
    assert run_federation(Network(sites), request).status == "completed"
    assert phases.count(("b", rule)) == 3
    _assert_equal(tmp_path / "run", undisturbed)


def test_a_refusal_for_good_is_not_asked_again(tmp_path: Path) -> None:
    sites = _sites()
    sites.refuse = lambda site, order: "maximum_steps" if (site, order.kind.value) == ("b", "train") else ""
    ended = run_federation(Network(sites), _deployed(tmp_path / "run", sites, quorum=0.5, retries=9))
    assert "b missed the training of round 3 (refused: maximum_steps)" in ended.status
    assert sum(site == "b" and kind == "train" for site, kind, *_ in sites.asked) == 3


@pytest.mark.parametrize(
    ("fault", "reason"),
    [("dropped", "late: deadline"), ("old", "rejected: reply of an old round")],
)
def test_a_site_that_is_lost_is_named_with_its_round(fault: str, reason: str, tmp_path: Path) -> None:
    sites = _sites()
    network = Network(sites, {("b", "train", 2): fault})
    request = _deployed(tmp_path / "run", sites, quorum=0.5, deadline_seconds=0.2)
    ended = run_federation(network, request)
    assert ended.status == f"degraded: b missed the training of round 2 ({reason})"


def test_a_site_that_stays_away_is_late_and_not_called_a_failure(tmp_path: Path) -> None:
    sites = _sites()
    network = Network(sites, {("b", "train", 2): "away"})
    network.away = _Away(network.away)
    ended = run_federation(network, _deployed(tmp_path / "run", sites, quorum=0.5, deadline_seconds=0.2))
    assert "b missed the training of round 2 (late: not connected)" in ended.status


class _Away(dict[int, int]):
    """Who is away once stays away."""

    def __setitem__(self, node: int, looks: int) -> None:
        super().__setitem__(node, max(looks, self[node]))


@pytest.mark.parametrize("kind", ["train", "evaluate"])
def test_a_run_that_loses_its_network_is_interrupted_and_goes_on_as_if_nothing_had_been(
    kind: str, tmp_path: Path, undisturbed: Path
) -> None:
    sites = _sites()
    request = _deployed(tmp_path / "run", sites)
    with pytest.raises(TransportLost):
        run_federation(Network(sites, {("b", kind, 2): "over"}), request)
    last = list(history.read(request.folder / history.FILE))[-1]
    assert isinstance(last, RunEnded)
    assert last.status == "interrupted: the Flower run was ended"
    assert run_federation(Network(sites), request).status == "completed"
    _assert_equal(request.folder, undisturbed)


def test_a_server_that_stays_away_until_the_deadline_interrupts_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sites = _sites()
    network = Network(sites)
    request = _deployed(tmp_path / "run", sites, deadline_seconds=0.1)

    def after_a_round(_record: RoundDone) -> None:
        class Gone(dict[tuple[str, str, int], str]):
            def pop(self, *_: object) -> str:  # type: ignore[override]
                return "pull fails"

        network.faults = Gone()

    with pytest.raises(TransportLost, match="does not answer"):
        run_federation(network, replace(request, on_round=after_a_round))
    assert run_federation(Network(sites), request).status == "completed"


def test_a_run_that_was_stopped_is_interrupted_without_a_reason(tmp_path: Path) -> None:
    sites = _sites()
    request = _deployed(tmp_path / "run", sites)
    with pytest.raises(Interrupted):
        run_federation(Network(sites), replace(request, on_round=lambda _record: request.stop.set()))
    last = list(history.read(request.folder / history.FILE))[-1]
    assert isinstance(last, RunEnded)
    assert last.status == "interrupted"


def test_a_deployed_run_goes_on_without_a_site_that_misses_the_roll_call(tmp_path: Path) -> None:
    sites = _sites()
    network = Network(sites)
    network.away[101] = 10**9
    request = _deployed(tmp_path / "run", sites, quorum=0.5)
    ended = run_federation(network, request)
    assert ended.status == "degraded: b missed the roll call of round 1: not connected"
    assert not any(site == "b" for site, *_ in sites.asked)


def test_a_site_that_joins_late_takes_part_from_the_next_resume(tmp_path: Path) -> None:
    sites = _sites()
    network = Network(sites)
    network.away[101] = 10**9
    request = _deployed(tmp_path / "run", sites, quorum=0.5)

    def joined_and_stopped(_record: RoundDone) -> None:
        network.away[101] = 0
        if _record.round == 2:
            request.stop.set()

    with pytest.raises(Interrupted):
        run_federation(network, replace(request, on_round=joined_and_stopped))
    ended = run_federation(network, _deployed(tmp_path / "run", sites, quorum=0.5))
    assert ended.status == (
        "degraded: b missed the roll call of round 1: not connected; b was not there when training began"
    )
    assert [number for site, kind, number, _ in sites.asked if (site, kind) == ("b", "train")] == [3]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"joins": lambda site: site != "b"}, "failed (internal, incident 0123)"),
        ({"refuse": lambda site, _order: "models" if site == "b" else ""}, "refused (models, incident 0123)"),
        (
            {"runs": lambda site: "0.0.1" if site == "b" else VERSION},
            f"it runs fedmed 0.0.1, this server {VERSION}",
        ),
    ],
)
def test_the_roll_call_says_why_a_site_is_missing(
    change: dict[str, object], why: str, tmp_path: Path
) -> None:
    sites = Sites(PATIENTS, **change)  # type: ignore[arg-type]
    ended = run_federation(Network(sites), _deployed(tmp_path / "run", sites, quorum=0.6))
    assert ended.status == f"degraded: b missed the roll call of round 1: {why}"


def test_the_roll_call_needs_the_quorum(tmp_path: Path) -> None:
    sites = _sites()
    network = Network(sites)
    network.away[101] = network.away[102] = 10**9
    with pytest.raises(
        QuorumError, match=r"1 of 3 sites take part, 2 are needed\. b: not connected; c: not connected"
    ):
        run_federation(network, _deployed(tmp_path / "run", sites, quorum=0.5))


def test_a_site_that_is_revoked_in_a_round_is_not_awaited(tmp_path: Path) -> None:
    sites = _sites()
    network = Network(sites, {("b", "train", 2): "dropped"})
    request = replace(
        _deployed(tmp_path / "run", sites, quorum=0.5),
        is_revoked=lambda site: site == "b" and ("b", "train", 2) not in network.faults,
    )
    ended = run_federation(network, request)
    assert ended.status.startswith("degraded: b missed the training of round 2 (refused: revoked); ")
    assert ended.status.count("refused: revoked") == ended.status.count("b missed")
    assert [number for site, kind, number, _ in sites.asked if (site, kind) == ("b", "train")] == [1]


def test_the_roll_call_does_not_wait_for_a_revoked_site(tmp_path: Path) -> None:
    sites = _sites()
    network = Network(sites)
    network.away[101] = 10**9
    request = _deployed(tmp_path / "run", sites, quorum=0.5, roll_call_seconds=1e5)
    ended = run_federation(network, replace(request, is_revoked=lambda site: site == "b"))
    assert ended.status == "degraded: b missed the roll call of round 1: revoked"


@pytest.mark.parametrize("away", ["at the roll call", "in a round"])
def test_a_run_with_too_few_sites_is_interrupted_and_goes_on_when_they_are_back(
    away: str, tmp_path: Path, undisturbed: Path
) -> None:
    sites = _sites()
    network = Network(sites, {("b", "train", 2): "dropped"} if away == "in a round" else {})
    network.away[101] = 10**9 if away == "at the roll call" else 0
    request = _deployed(tmp_path / "run", sites, deadline_seconds=0.3)
    with pytest.raises(QuorumError):
        run_federation(network, request)
    last = list(history.read(request.folder / history.FILE))[-1]
    assert isinstance(last, RunEnded)
    assert last.status.startswith("interrupted: ")
    assert "b: " in last.status
    assert "\n" not in last.status
    network.away[101] = 0
    assert run_federation(network, request).status == "completed"
    _assert_equal(request.folder, undisturbed)


def test_a_node_cannot_answer_by_another_sites_name(tmp_path: Path) -> None:
    sites = _sites()
    sites.name = {100: "a", 101: "c", 102: "c"}.__getitem__  # type: ignore[method-assign]
    network = Network(sites)
    registered = Sites(PATIENTS)
    network.sites = registered
    ended = run_federation(network, _deployed(tmp_path / "run", registered, quorum=0.5))
    assert ended.status == "degraded: b missed the roll call of round 1: rejected (another site's name)"


def test_only_the_sites_that_were_launched_are_asked(tmp_path: Path) -> None:
    sites = _sites()
    request = replace(_deployed(tmp_path / "run", sites), expected=("a", "c"))
    assert run_federation(Network(sites), request).status == "completed"
    assert {site for site, *_ in sites.asked} == {"a", "c"}


def _peak(sites: int) -> int:
    """Bytes that a round of so many sites takes at its peak."""
    many = Sites(dict.fromkeys((f"site-{number}" for number in range(sites)), 9))
    parameters = {"weight": np.ones(1_000_000, np.float32)}
    tracemalloc.start()
    try:
        play_round(many.grid(), many, parameters)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_the_server_holds_one_reply_whatever_the_number_of_sites() -> None:
    assert _peak(8) < _peak(2) + 400_000


@pytest.mark.parametrize("point", ["before-dispatch", "aggregating", "writing-checkpoint"])
def test_a_server_that_is_killed_at_a_failpoint_goes_on_bit_identical(
    point: str, tmp_path: Path, undisturbed: Path
) -> None:
    folder, plan = tmp_path / "run", tmp_path / "plan.json"
    fault = {"point": point, "target": str(folder / "run.pid"), "signal": "SIGKILL", "round": 2, "id": point}
    (tmp_path / "fired").mkdir()
    plan.write_text(json.dumps({"faults": [fault], "fired": str(tmp_path / "fired")}))
    killed = subprocess.run(
        [sys.executable, str(SCRIPT), str(folder)],
        env={**os.environ, "FEDMED_FAILPOINTS": str(plan)},
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    state = load_state(folder)
    assert state is not None
    assert state.round == 1
    sites = _sites()
    assert run_federation(sites.grid(), make_request(folder, sites)).status == "completed"
    _assert_equal(folder, undisturbed)
    assert not list(folder.glob(".*.tmp"))
