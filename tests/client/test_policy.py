"""A site's rules: an order outside is refused by the rule's name, and small groups of patients do not show."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from fedmed_client import policy
from fedmed_common.config import Experiment, Policy, Task
from fedmed_common.errors import PolicyRefusal
from fedmed_common.metrics import Mean
from fedmed_common.tasks.classification import Classification, Prediction


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


def _classified(labels: str, **showing: int) -> dict[str, Mean]:
    """What a site measures on 20 patients, of whom so many show each class; a ``single`` class is shown by those next in line."""
    names = tuple(showing)
    task = Task.model_validate({"name": "classification", "classes": names, "labels": labels})
    present, first = np.zeros((20, len(names)), bool), 0
    for place, count in enumerate(showing.values()):
        present[first : first + count, place] = True
        first += count if labels == "single" else 0
    score = np.random.default_rng(0).random(present.shape)
    people = [
        [Prediction(score=one, present=shows, annotated=np.ones(len(names), bool))]
        for one, shows in zip(score, present, strict=True)
    ]
    return Classification(SimpleNamespace(task=task)).summarise(people)  # type: ignore[arg-type]


def _classes_of(metrics: dict[str, Mean]) -> set[str]:
    return {name.partition("/")[2] for name in metrics} - {""}


def test_no_metric_of_a_classification_leaves_where_few_show_a_class_or_few_do_not() -> None:
    metrics = _classified("multi", few=4, many=5, most=15, nearly=16, nobody=0, everybody=20)
    assert _classes_of(metrics) == {"few", "many", "most", "nearly", "nobody", "everybody"}
    assert _classes_of(policy.releasable(Policy(), metrics)) == {"many", "most", "nobody", "everybody"}
    assert policy.releasable(Policy(least_patients=1), metrics) == metrics
    assert policy.releasable(Policy(least_patients=21), metrics) == {}
    only = policy.releasable(Policy(metrics=("auroc/many", "f1")), metrics)
    assert set(only) == {"auroc/many", "f1/many", "f1/most", "f1/nobody", "f1/everybody"} & metrics.keys()


@pytest.mark.parametrize(
    ("showing", "leave"),
    [
        ({"a": 3, "b": 9, "c": 8}, {"b"}),  # with b known, a and c are 11 together
        ({"a": 2, "b": 18, "c": 0}, {"c"}),  # b would leave over those of a
        ({"a": 4, "b": 3, "c": 13}, {"c"}),
        ({"a": 7, "b": 13, "c": 0}, {"a", "b", "c"}),
    ],
)
def test_what_is_left_over_of_the_patients_tells_of_no_class(
    showing: dict[str, int], leave: set[str]
) -> None:
    released = policy.releasable(Policy(), _classified("single", **showing))
    assert _classes_of(released) == leave
    assert released["accuracy"].weight == 20
    counts = policy.releasable_counts(Policy(), showing, one_each=True)
    assert {name for name, count in counts.items() if count > 0} == {n for n in leave if showing[n]}


def test_small_counts_only_say_that_they_are_small() -> None:
    assert policy.releasable_counts(Policy(), {"a": 0, "b": 1, "c": 4, "d": 5}) == {
        "a": 0,
        "b": -1,
        "c": -1,
        "d": 5,
    }
