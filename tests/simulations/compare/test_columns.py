"""The columns of the table: by hand where they are sums, and against the task itself where they are ranks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fedmed_common.loading import load_experiment
from fedmed_common.metrics import SCORES, merge
from fedmed_common.tasks import build_task
from fedmed_common.tasks.classification import Prediction
from fedmed_simulations.compare.columns import Classes, Means, Scored, class_values, columns, once, scored

NAN = np.nan
CLASSES = Classes(
    names=("a", "b", "c"),
    groups={"head": ("b",), "medium": ("a",), "tail": ("c",)},
    lead=SCORES["segmentation"][0],
)


def _site(dice: list[list[float]], wrong: list[list[float]]) -> Scored:
    return Scored(
        patients=tuple(range(len(dice))),
        sums={"dice": Means(np.array(dice)), "false_positive": Means(np.array(wrong))},
    )


def test_by_hand() -> None:
    """Two sites; class c is shown by one patient alone, and painted over two of the three others who were looked at."""
    outcome = {
        "x": _site([[0.2, 0.8, NAN], [NAN, 0.6, 0.4]], [[NAN, NAN, 1.0], [0.0, NAN, NAN]]),
        "y": _site([[0.5, NAN, NAN], [0.9, 0.1, NAN]], [[NAN, 1.0, 0.0], [NAN, NAN, 1.0]]),
    }
    found = {name: values.tolist() for name, values in columns(outcome, CLASSES, once(outcome)).items()}
    a, b, c = (0.2 + 0.5 + 0.9) / 3, (0.8 + 0.6 + 0.1) / 3, 0.4
    x, y = (0.2 + 0.7 + 0.4) / 3, (0.7 + 0.1) / 2
    assert found == {
        "mean": pytest.approx([(a + b + c) / 3]),
        "head": pytest.approx([b]),
        "medium": pytest.approx([a]),
        "tail": pytest.approx([c]),
        "worst_site": pytest.approx([y]),
        "site_sd": pytest.approx([(x - y) / 2]),
        "false_positives": pytest.approx([(0.0 + 1.0 + 2 / 3) / 3]),
        "tail_false_positives": pytest.approx([2 / 3]),
    }


def test_a_patient_drawn_twice_counts_twice_and_one_not_drawn_is_not_there() -> None:
    outcome = {"x": _site([[0.2, 0.8, NAN], [NAN, 0.6, 0.4]], [[NAN, NAN, 1.0], [0.0, NAN, NAN]])}
    weights = {"x": np.array([[2.0, 0.0], [1.0, 1.0], [0.0, 0.0]])}
    found = columns(outcome, CLASSES, weights)
    np.testing.assert_allclose(found["mean"], [0.5, (0.2 + 0.7 + 0.4) / 3, NAN])
    np.testing.assert_allclose(found["tail"], [NAN, 0.4, NAN])
    np.testing.assert_allclose(found["tail_false_positives"], [1.0, 1.0, NAN])
    np.testing.assert_allclose(found["worst_site"], found["mean"])


def test_a_site_without_test_patients_is_no_site() -> None:
    with_all = {"x": _site([[0.2, 0.8, NAN]], [[NAN, NAN, 1.0]])}
    none = Scored(patients=(), sums={name: Means(np.zeros((0, 3))) for name in ("dice", "false_positive")})
    found = columns({**with_all, "y": none}, CLASSES, once({**with_all, "y": none}))
    for name, values in columns(with_all, CLASSES, once(with_all)).items():
        np.testing.assert_array_equal(found[name], values)


def test_a_patients_value_is_the_mean_over_the_rounds() -> None:
    rounds = [
        {3: {"dice/a": 0.2, "false_positive/c": 1.0}, 1: {"dice/b": 1.0}},
        {3: {"dice/a": 0.6, "false_positive/c": 0.0}, 1: {"dice/b": 0.0}},
    ]
    found = scored(rounds, CLASSES)
    assert found.patients == (1, 3)
    values = {name: sums.values.tolist() for name, sums in found.sums.items()}
    np.testing.assert_array_equal(values["dice"], [[NAN, 0.5, NAN], [0.4, NAN, NAN]])
    np.testing.assert_array_equal(values["false_positive"], [[NAN, NAN, NAN], [NAN, NAN, 0.5]])


def test_auroc_of_drawn_patients_is_what_the_task_makes_of_them(tmp_path: Path) -> None:
    """Also with ties, patients who are drawn several times, classes not looked for, and averaged over rounds."""
    file = tmp_path / "labels.toml"
    file.write_text(
        'name = "labels"\nrounds = 5\n[task]\nname = "classification"\nclasses = ["a", "b", "c"]\ndimensions = 2\n'
        '[data]\npatch = [24, 24]\n[model]\nname = "resnet"'
    )
    experiment = load_experiment(file)
    task = build_task(experiment)
    classes = Classes(names=experiment.task.classes, groups=CLASSES.groups, lead=experiment.task.scores[0])
    rng = np.random.default_rng(5)
    sites, weights = {}, {}
    for site, people in (("x", 9), ("y", 6)):
        present, annotated = rng.random((people, 3)) < 0.5, rng.random((people, 3)) < 0.8
        scores = rng.integers(0, 5, (2, people, 3)) / 4
        sites[site] = [
            [
                Prediction(score, shows & known, known)
                for score, shows, known in zip(one, present, annotated, strict=True)
            ]
            for one in scores
        ]
        weights[site] = rng.multinomial(people, np.full(people, 1 / people), size=20).astype(float)
    outcome = {
        site: scored(
            [
                {
                    n: {f: getattr(person, f).tolist() for f in ("score", "present", "annotated")}
                    for n, person in enumerate(one)
                }
                for one in rounds
            ],
            classes,
        )
        for site, rounds in sites.items()
    }
    found, _ = class_values(outcome, "auroc", weights)
    for draw in range(20):
        of_rounds = []
        for number in range(2):
            drawn = {
                site: [
                    [person]
                    for person, times in zip(rounds[number], weights[site][draw], strict=True)
                    for _ in range(int(times))
                ]
                for site, rounds in sites.items()
            }
            metrics = merge(task.summarise(people) for people in drawn.values())
            of_rounds.append(
                [
                    metrics[f"auroc/{name}"].value if f"auroc/{name}" in metrics else NAN
                    for name in classes.names
                ]
            )
        np.testing.assert_allclose(found[draw], np.mean(of_rounds, axis=0), rtol=1e-12)
