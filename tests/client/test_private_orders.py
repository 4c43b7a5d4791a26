"""Orders for private training: what leaves, what is spent by asking again, and each rule that refuses."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from private_sites import experiment
from site_orders import ask, ruled

from fedmed_client.keeping import Keeping
from fedmed_client.ledger import KEY, LEDGER, Ledger, Reservation
from fedmed_client.site.audit import AuditLog
from fedmed_client.work.outbox import Outbox
from fedmed_client.workbench import SiteHome
from fedmed_common import params, privacy, wire
from fedmed_common.config import Experiment
from fedmed_common.errors import RejectedReply
from fedmed_common.metrics import Mean
from fedmed_common.models import build_model
from fedmed_common.receipts import Receipt
from fedmed_server import gate


def _order(asked: Experiment, **fields: Any) -> wire.Order:
    settings = {"kind": wire.Kind.TRAIN, "run": "run", "round": 1, "attempt": 0, **fields}
    return wire.Order(
        experiment=asked.order_text(), parameters=params.from_model(build_model(asked)), **settings
    )


def _expected(order: wire.Order, **changes: Any) -> gate.Expected:
    expected = gate.Expected(
        site="alpha",
        run=order.run,
        round=order.round,
        attempt=order.attempt,
        kind=order.kind,
        classes=("disc",),
        metrics=frozenset({"loss"}),
        patients=6,
        steps=2,
        template=order.parameters,
        private=True,
    )
    return replace(expected, **changes)


def test_the_change_and_what_it_cost_leave_and_nothing_else(home: SiteHome) -> None:
    asked = experiment(steps=2, rounds=3)
    order = _order(asked)
    reply = ask(home, order)
    (row,) = Ledger(home.folder).read()
    assert (row.run, row.round, row.attempt, row.steps, row.sampling_rate) == ("run", 1, 0, 2, 0.5)
    assert row.noise_multiplier == privacy.noise_multiplier(asked)
    assert (reply.code, reply.metrics, reply.seconds, reply.facts) == ("", {}, {}, None)
    assert reply.epsilon_spent == privacy.epsilon([row.spent], 1e-5)
    assert 0 < reply.epsilon_spent < 8.0
    assert set(reply.delta) == set(order.parameters)
    assert set(wire.pack_reply(reply)) == {"reply", "parameters", "privacy", "receipt"}
    assert gate.admit(wire.pack_reply(reply), _expected(order)).epsilon_spent == reply.epsilon_spent


def _private_reply(order: wire.Order) -> wire.Reply:
    return wire.Reply(
        site="alpha",
        run="run",
        round=1,
        attempt=0,
        delta=order.parameters,
        epsilon_spent=0.5,
        receipt=Receipt(sequence=3, mac="0a" * 32),
    )


@pytest.mark.parametrize(
    ("changes", "private", "reason"),
    [
        ({"epsilon_spent": None}, True, "no word on privacy"),
        ({}, False, "privacy that was not asked for"),
        ({"receipt": None}, True, "no receipt"),
        ({"epsilon_spent": None}, False, "a receipt that was not asked for"),
        ({"receipt": Receipt(sequence=0, mac="0" * 64)}, True, "receipt"),
        ({"receipt": Receipt(sequence=1, mac="Meyer, Anna")}, True, "receipt"),
        ({"code": "internal", "delta": {}, "epsilon_spent": None}, True, "a refusal that carries results"),
        ({"epsilon_spent": -1.0}, True, "epsilon"),
        ({"epsilon_spent": float("nan")}, True, "epsilon"),
        ({"epsilon_spent": 1e300}, True, "epsilon"),
        ({"code": "internal", "delta": {}}, True, "a refusal that carries results"),
        ({"seconds": {"site": 1.0}}, True, "more than private work tells"),
        ({"metrics": {"loss": Mean(1.0, 2.0)}}, True, "more than private work tells"),
    ],
)
def test_the_gate_compares_with_what_was_asked(changes: dict[str, Any], private: bool, reason: str) -> None:
    order = _order(experiment(steps=2))
    reply = _private_reply(order)
    with pytest.raises(RejectedReply, match=f"^{reason}$"):
        gate.admit(wire.pack_reply(replace(reply, **changes)), _expected(order, private=private))


def test_a_second_number_in_the_privacy_record_is_refused() -> None:
    order = _order(experiment(steps=2))
    reply = _private_reply(order)
    record = wire.pack_reply(reply)
    record.metric_records["privacy"]["drawn"] = 3
    with pytest.raises(RejectedReply):
        gate.admit(record, _expected(order))


def test_a_second_field_in_the_receipt_is_refused() -> None:
    order = _order(experiment(steps=2))
    record = wire.pack_reply(_private_reply(order))
    record.config_records["receipt"]["note"] = "Meyer, Anna"
    with pytest.raises(RejectedReply):
        gate.admit(record, _expected(order))


def test_a_site_whose_ledger_lost_rows_refuses_roll_call_and_training(home: SiteHome) -> None:
    order = _order(experiment(steps=2, rounds=3))
    receipt = ask(home, order).receipt
    assert receipt is not None
    (home.folder / LEDGER).unlink()
    for asked in (replace(order, receipt=receipt), replace(order, kind=wire.Kind.FACTS, receipt=receipt)):
        reply = ask(home, asked)
        assert (reply.code, reply.rule, reply.delta, reply.facts) == ("policy", "privacy_ledger", {}, None)


def test_asked_again_a_site_without_a_sealed_reply_spends_again(home: SiteHome) -> None:
    order = _order(experiment(steps=2, rounds=3))
    first, second = ask(home, order), ask(home, order)
    assert [row.attempt for row in Ledger(home.folder).read()] == [0, 0]
    assert first.epsilon_spent is not None
    assert second.epsilon_spent is not None
    assert second.epsilon_spent > first.epsilon_spent
    assert any(not np.array_equal(first.delta[name], second.delta[name]) for name in first.delta)


def test_a_sealed_reply_is_sent_again_and_nothing_more_is_spent(home: SiteHome, tmp_path: Path) -> None:
    """Also by a site that has nothing left to spend."""
    sealing = replace(home, outbox=Outbox(folder=tmp_path / "outbox"), audit=AuditLog(home.folder))
    home.folder.mkdir()
    order = _order(experiment(rounds=1, spare_rounds=0, noise_multiplier=None))
    first, again = ask(sealing, order), ask(sealing, replace(order, attempt=4))
    assert first.epsilon_spent == again.epsilon_spent
    assert all(first.delta[name].tobytes() == again.delta[name].tobytes() for name in first.delta)
    assert first.receipt == again.receipt
    assert len(Ledger(home.folder).read(first.receipt)) == 1
    other = ask(sealing, replace(order, round=2))
    assert (other.code, other.rule) == ("policy", "privacy_budget")
    events = [json.loads(line)["event"] for line in (home.folder / "audit.log").read_text().splitlines()]
    assert events == ["reserved", "sealed", "refused"]


SPENT = Reservation(run="before", round=1, attempt=0, noise_multiplier=1.0, sampling_rate=0.5, steps=4000)
REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "maximum_epsilon": ({"maximum_epsilon": 7.9}, {}),
    "maximum_run_epsilon": ({"maximum_run_epsilon": 7.9}, {}),
    "budget_delta": ({"maximum_epsilon": 8.0}, {"delta": 1e-4}),
    "maximum_clipping": ({"maximum_clipping": 0.5}, {}),
    "maximum_sampling_rate": ({"maximum_sampling_rate": 0.4}, {}),
    "least_noise": ({"least_noise": 2.0}, {"noise_multiplier": 1.9}),
    "privacy_budget": ({"maximum_epsilon": 8.0}, {}),
}


@pytest.mark.parametrize("rule", REFUSED)
def test_the_site_refuses_by_the_rule_s_name_before_anything_is_spent(home: SiteHome, rule: str) -> None:
    rules, settings = REFUSED[rule]
    steps: list[int] = []
    strict = replace(ruled(home, **rules), on_step=lambda _site, step: steps.append(step))
    if rule == "privacy_budget":
        Ledger(home.folder).reserve(SPENT)
    before = Ledger(home.folder).read()
    reply = ask(strict, _order(experiment(**settings)))
    assert (reply.code, reply.rule, reply.delta, reply.seconds) == ("policy", rule, {}, {})
    assert steps == []
    assert Ledger(home.folder).read() == before


def test_noise_that_the_experiment_leaves_to_be_worked_out_is_measured_by_the_rule_too(
    home: SiteHome,
) -> None:
    order = _order(experiment(noise_multiplier=None))
    least = privacy.noise_multiplier(experiment(noise_multiplier=None))
    for asked in (order, replace(order, kind=wire.Kind.FACTS, parameters={})):
        assert ask(ruled(home, least_noise=least + 0.001), asked).rule == "least_noise"
        assert ask(ruled(home, least_noise=least), asked).code == ""


@pytest.mark.parametrize("kind", list(wire.Kind))
def test_a_site_that_demands_privacy_answers_nothing_without(home: SiteHome, kind: wire.Kind) -> None:
    strict = ruled(home, require_privacy=True)
    plain = experiment().model_copy(update={"privacy": None})
    reply = ask(strict, _order(plain, kind=kind))
    assert (reply.code, reply.rule, reply.delta, reply.metrics, reply.facts) == (
        "policy",
        "require_privacy",
        {},
        {},
        None,
    )
    assert ask(strict, _order(experiment())).code == ""


def _damage(folder: Path) -> None:
    (folder / LEDGER).write_bytes(b"not a database" * 100)


def _lose_the_key(folder: Path) -> None:
    (folder / KEY).unlink()


@pytest.mark.parametrize("spoil", [_damage, _lose_the_key])
def test_without_a_whole_ledger_nothing_is_trained(home: SiteHome, spoil: Callable[[Path], None]) -> None:
    order = _order(experiment(rounds=2))
    assert ask(home, order).code == ""
    spoil(home.folder)
    reply = ask(home, replace(order, round=2))
    assert (reply.code, reply.rule, reply.delta) == ("policy", "privacy_ledger", {})


def test_a_fault_in_private_training_does_not_tell_when_it_came(home: SiteHome) -> None:
    def fail(_site: str, _step: int) -> None:
        raise RuntimeError("in a step")

    reply = ask(replace(home, on_step=fail), _order(experiment()))
    assert (reply.code, reply.seconds, reply.epsilon_spent) == ("internal", {}, None)
    assert len(Ledger(home.folder).read()) == 1


def test_an_evaluation_of_a_private_experiment_is_one_as_any_other(home: SiteHome) -> None:
    order = _order(experiment(), kind=wire.Kind.EVALUATE)
    reply = ask(ruled(home, least_patients=1, require_privacy=True), order)
    assert set(reply.metrics) >= {"dice/disc"}
    assert reply.epsilon_spent is None
    assert set(reply.seconds) == {"evaluate", "site"}


def test_a_norm_that_follows_is_kept_from_round_to_round_and_charged_once(home: SiteHome) -> None:
    asked = experiment(steps=3, rounds=4, clipping_quantile=0.5)
    least = 0.99 * math.exp(-3 * 0.2 * 0.5)  # three steps, each by at most the rate times the quantile
    keeping, name = Keeping(home.folder, "run"), "privacy/clipping_norm"
    replies = [ask(home, _order(asked))]
    assert 1.0 * least <= float(keeping.before(2)[name]) <= 1.0
    keeping.write(1, {name: np.array(0.1)}, best=0)
    replies.append(ask(home, replace(_order(asked), round=2)))
    assert 0.1 * least <= float(keeping.before(3)[name]) <= 0.1 / least
    assert [reply.code for reply in replies] == ["", ""]
    assert [row.noise_multiplier for row in Ledger(home.folder).read()] == [2.0, 2.0]
    assert set(wire.pack_reply(replies[0])) == {"reply", "parameters", "privacy", "receipt"}
