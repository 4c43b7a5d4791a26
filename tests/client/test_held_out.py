"""Metrics of held-out patients with noise: what one patient can move, what is left out, and what a site charges for them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from private_sites import experiment
from site_orders import ask, ruled

from fedmed_client import held_out
from fedmed_client.held_out import groups_of, sensitivity, with_noise
from fedmed_client.ledger import Ledger
from fedmed_client.work.outbox import Outbox
from fedmed_client.workbench import SiteHome
from fedmed_common import params, privacy, wire
from fedmed_common.config import Task
from fedmed_common.metrics import Mean, Metrics
from fedmed_common.models import build_model
from fedmed_server import gate

SEGMENTATION = Task(classes=("liver", "lesion"), dimensions=3, surface_metrics=True)
CLASSIFICATION = Task(name="classification", classes=("a", "b", "c"), dimensions=2, labels="single")


def _all(_name: str) -> bool:
    return True


def _silent(count: int) -> torch.Tensor:
    return torch.zeros(count, dtype=torch.float64)


def _patient(**metrics: float) -> Metrics:
    return {name.replace("__", "/"): Mean(value, 1.0) for name, value in metrics.items()}


def test_without_its_noise_it_is_the_mean_over_patients_and_their_number() -> None:
    patients = [
        _patient(dice__liver=0.9, nsd__liver=0.8, hd95_mm__liver=4.0, false_positive__lesion=1.0),
        _patient(dice__liver=0.5, nsd__liver=0.6, hd95_mm__liver=9.0, false_positive__lesion=0.0),
        _patient(
            dice__liver=0.1, nsd__liver=0.1, dice__lesion=0.3, nsd__lesion=0.2, false_positive__lesion=1.0
        ),
    ]
    found = with_noise(patients, SEGMENTATION, _all, 1.0, _silent)
    expected = {
        "dice/liver": (1.5 / 3, 3),
        "nsd/liver": (1.5 / 3, 3),
        "dice/lesion": (0.3, 1),
        "nsd/lesion": (0.2, 1),
        "false_positive/lesion": (0.5, 2),
    }
    assert found.keys() == expected.keys()
    for name, (value, weight) in expected.items():
        assert (found[name].value, found[name].weight) == pytest.approx((value, weight), abs=1e-4)


def test_what_the_policy_does_not_name_takes_no_share_of_the_noise() -> None:
    every, some = (groups_of(SEGMENTATION, permits) for permits in (_all, lambda name: name == "dice/liver"))
    assert some == {("liver", "present"): ("dice/liver",)}
    assert sensitivity(some) == pytest.approx(math.sqrt(1.25))
    assert sensitivity(every) == pytest.approx(math.sqrt(2 * 1.5))
    assert with_noise([_patient(dice__liver=1.0)], SEGMENTATION, lambda _name: False, 1.0) == {}


def test_of_a_classification_sums_over_patients_are_left() -> None:
    names = {name for group in groups_of(CLASSIFICATION, _all).values() for name in group}
    assert {name.partition("/")[0] for name in names} == {"sensitivity", "specificity", "accuracy"}
    assert sensitivity(groups_of(CLASSIFICATION, _all)) == pytest.approx(math.sqrt(4 * 1.25))


HOSTILE = st.one_of(st.floats(), st.sampled_from([math.nan, math.inf, -math.inf, 1e30, -1e30]))


@given(st.data())
@pytest.mark.parametrize("task", [SEGMENTATION, CLASSIFICATION], ids=["segmentation", "classification"])
def test_no_patient_adds_more_than_the_noise_is_for(task: Task, data: st.DataObject) -> None:
    """Whatever values and weights a patient's metrics have, also of classes that one image shows and another does not."""
    groups = groups_of(task, _all)
    names = sorted({name for group in groups.values() for name in group})
    chosen = data.draw(st.lists(st.sampled_from(names), unique=True))
    patient = {name: Mean(data.draw(HOSTILE), data.draw(HOSTILE)) for name in chosen}
    added = held_out.added(patient, groups)
    length = math.sqrt(sum(value**2 for value in added.values()))
    assert length <= sensitivity(groups) * (1 + 1e-12)


def test_the_noise_has_the_deviation_that_was_asked() -> None:
    patients = [_patient(dice__liver=0.5)] * 10_000
    task = Task(classes=("liver",), dimensions=3)
    counts = [with_noise(patients, task, _all, 4.0)["dice/liver"].weight for _ in range(400)]
    below = [10_000 - count for count in counts if count < 10_000]
    assert 120 < len(below) < 280
    expected = 4.0 * math.sqrt(1.25)
    assert float(np.sqrt(np.mean(np.square(below)))) == pytest.approx(expected, rel=0.25)
    assert max(counts) == 10_000


def test_chance_is_another_each_time() -> None:
    patients = [_patient(dice__liver=0.5)] * 100
    first, second = (with_noise(patients, SEGMENTATION, _all, 1.0)["dice/liver"] for _ in range(2))
    assert first != second


def _ruled(home: SiteHome, **rules: object) -> SiteHome:
    return ruled(home, **{"least_patients": 1, **rules})


def _order(kind: wire.Kind = wire.Kind.EVALUATE, **fields: Any) -> wire.Order:
    private = fields.pop("private", False)
    asked = experiment(steps=1, rounds=2)
    if not private:
        asked = asked.model_copy(update={"privacy": None})
    parameters = params.from_model(build_model(asked)) if kind is not wire.Kind.FACTS else {}
    settings: Mapping[str, Any] = {"run": "run", "round": 1, "attempt": 0, **fields}
    return wire.Order(kind=kind, experiment=asked.order_text(), parameters=parameters, **settings)


def _expected(order: wire.Order, patients: int) -> gate.Expected:
    names = frozenset({"dice/disc", "false_positive/disc"})
    return gate.Expected(
        site="alpha",
        run=order.run,
        round=order.round,
        attempt=order.attempt,
        kind=order.kind,
        classes=("disc",),
        metrics=names,
        patients=patients,
        private=True,
    )


def test_a_measurement_with_noise_is_charged_and_says_what_it_cost(home: SiteHome) -> None:
    """Also in a run without [privacy]: what leaves is the site's to choose."""
    rules = {"held_out": "noised", "held_out_epsilon": 50.0, "maximum_epsilon": 200.0}
    order = _order()
    reply = ask(_ruled(home, **rules), order)
    (row,) = Ledger(home.folder).read()
    sigma = privacy.calibrate(50.0, 1e-5, 1.0, 1)
    assert (row.split, row.noise_multiplier, row.sampling_rate, row.steps) == ("validation", sigma, 1.0, 1)
    assert reply.epsilon_spent == privacy.epsilon([row.spent], 1e-5) <= 50.0
    assert reply.receipt is not None
    assert reply.seconds == {}
    facts = ask(home, _order(wire.Kind.FACTS)).facts
    assert facts is not None
    admitted = gate.admit(wire.pack_reply(reply), _expected(order, facts.patients["validation"]))
    assert admitted.metrics == reply.metrics
    exact = ask(_ruled(home), order)
    assert exact.metrics["dice/disc"].weight == facts.patients["validation"]
    assert reply.metrics.get("dice/disc") != exact.metrics["dice/disc"]


def test_asked_again_it_is_the_same_reply_and_costs_nothing_more(home: SiteHome, tmp_path: Path) -> None:
    site = _ruled(home, held_out="noised", held_out_epsilon=50.0)
    sealing = replace(site, outbox=Outbox(folder=tmp_path / "outbox"))
    order = _order()
    first, again = ask(sealing, order), ask(sealing, replace(order, attempt=3))
    assert first.metrics == again.metrics
    assert len(Ledger(home.folder).read()) == 1


def test_what_is_spent_ends_measurements_and_not_the_training_that_was_promised(home: SiteHome) -> None:
    """A patient is trained on or measured: the experiment's promise counts the one, the site's ceiling both."""
    site = _ruled(home, held_out="noised", held_out_epsilon=8.0, maximum_epsilon=14.0)
    assert ask(site, _order()).code == ""
    assert ask(site, _order(split="test")).code == ""
    refused = ask(site, _order(round=2))
    assert (refused.code, refused.rule, refused.metrics, refused.seconds) == (
        "policy",
        "privacy_budget",
        {},
        {},
    )
    assert [row.split for row in Ledger(home.folder).read()] == ["validation", "test"]
    roomy = _ruled(home, held_out="noised", maximum_epsilon=100.0)
    trained = ask(roomy, _order(wire.Kind.TRAIN, private=True))
    assert trained.code == ""
    (*_, row) = Ledger(home.folder).read()
    assert trained.epsilon_spent == privacy.epsilon([row.spent], 1e-5)


def test_a_site_can_keep_them(home: SiteHome) -> None:
    reply = ask(_ruled(home, held_out="kept"), _order())
    assert (reply.code, reply.metrics, reply.epsilon_spent) == ("", {}, None)
    assert Ledger(home.folder).read() == ()


@pytest.mark.parametrize("how", ["measured", "noised", "kept"])
def test_roll_call_says_how_they_leave(home: SiteHome, how: str) -> None:
    facts = ask(_ruled(home, held_out=how), _order(wire.Kind.FACTS)).facts
    assert facts is not None
    assert facts.held_out == how
