"""A site's rules: an order outside is refused by the rule's name, and small groups of patients do not show."""

from __future__ import annotations

import pytest

from fedmed_client import policy
from fedmed_common.config import Experiment, Policy
from fedmed_common.errors import PolicyRefusal
from fedmed_common.metrics import Mean


@pytest.fixture
def experiment() -> Experiment:
    return Experiment.model_validate(
        {
            "name": "x",
            "rounds": 3,
            "task": {"classes": ["a"]},
            "data": {"patch": [16, 16, 16]},
            "train": {"steps": 30},
        }
    )


@pytest.mark.parametrize(
    ("rules", "rule"),
    [
        ({"maximum_steps": 29}, "maximum_steps"),
        ({"tasks": ["classification"]}, "tasks"),
        ({"models": ["vnet"]}, "models"),
        ({"recipes": []}, "recipes"),
        ({"maximum_rounds": 2}, "maximum_rounds"),
    ],
)
def test_an_order_outside_is_refused_by_name(
    experiment: Experiment, rules: dict[str, object], rule: str
) -> None:
    with pytest.raises(PolicyRefusal) as refused:
        policy.check(Policy.model_validate(rules), experiment)
    assert refused.value.rule == rule


def test_a_round_after_the_last_is_refused(experiment: Experiment) -> None:
    policy.check(Policy(maximum_rounds=3), experiment, 3)
    with pytest.raises(PolicyRefusal) as refused:
        policy.check(Policy(maximum_rounds=3), experiment, 4)
    assert refused.value.rule == "maximum_rounds"


def test_metrics_are_permitted_by_name_or_by_what_stands_before_the_class() -> None:
    metrics = {name: Mean(3.0, 6.0) for name in ("dice/a", "dice/b", "nsd/a", "loss")}
    assert set(policy.permitted(Policy(), metrics)) == set(metrics)
    assert set(policy.permitted(Policy(metrics=("dice", "nsd/a")), metrics)) == {"dice/a", "dice/b", "nsd/a"}
    assert policy.releasable(Policy(metrics=("dice/b",)), metrics) == {"dice/b": Mean(3.0, 6.0)}
    assert policy.permitted(Policy(metrics=()), metrics) == {}


def test_training_on_few_patients_is_refused() -> None:
    policy.check_patients(Policy(least_patients=10), 10)
    with pytest.raises(PolicyRefusal) as refused:
        policy.check_patients(Policy(least_patients=11), 10)
    assert refused.value.rule == "least_patients"


def test_an_order_inside_passes(experiment: Experiment) -> None:
    policy.check(Policy(maximum_steps=30, models=("unet",)), experiment)


def test_metrics_over_few_patients_stay() -> None:
    metrics = {"dice/a": Mean(4.0, 5.0), "dice/b": Mean(3.0, 4.0), "false_positive/b": Mean(0.0, 0.0)}
    assert policy.releasable(Policy(), metrics) == {"dice/a": Mean(4.0, 5.0)}


def test_no_other_metric_tells_how_few_show_a_class() -> None:
    """Of 20 patients, 18 who do not show the class are 2 who do."""
    few = {"dice/a": Mean(1.0, 2.0), "hd95_mm/a": Mean(9.0, 2.0), "false_positive/a": Mean(3.0, 18.0)}
    none = {"false_positive/b": Mean(3.0, 20.0)}
    many = {"dice/c": Mean(9.0, 18.0), "false_positive/c": Mean(0.0, 2.0)}
    assert policy.releasable(Policy(), few | none | many) == none | {"dice/c": Mean(9.0, 18.0)}


def test_small_counts_only_say_that_they_are_small() -> None:
    assert policy.releasable_counts(Policy(), {"a": 0, "b": 1, "c": 4, "d": 5}) == {
        "a": 0,
        "b": -1,
        "c": -1,
        "d": 5,
    }
