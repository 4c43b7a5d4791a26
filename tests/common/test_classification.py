"""Scores, losses and inference of the classification task: equal to what other libraries and the definitions say."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as reference
from torch import nn

from fedmed_common.config import Task
from fedmed_common.metrics import SCORES, Mean, merge
from fedmed_common.tasks import LABEL_LOSSES
from fedmed_common.tasks.classification import Classification, Prediction
from fedmed_common.tasks.label_losses import binary_cross_entropy, binary_focal, cross_entropy, focal
from fedmed_common.tasks.ranking import auroc, average_precision, calibration_error

NAMES = ("a", "b", "c")


def _task(dimensions: int = 3, **task: Any) -> Classification:
    """The task alone: its network is each test's own."""
    experiment = SimpleNamespace(
        task=_settings(dimensions, **task), data=SimpleNamespace(patch=(8,) * dimensions)
    )
    return Classification(experiment)  # type: ignore[arg-type]


def _settings(dimensions: int, **task: Any) -> Task:
    return Task.model_validate({"name": "classification", "classes": NAMES, "dimensions": dimensions, **task})


def _people(score: np.ndarray, present: np.ndarray) -> list[list[Prediction]]:
    known = np.ones(score.shape[1], bool)
    return [
        [Prediction(score=one.astype(float), present=shows, annotated=known)]
        for one, shows in zip(score, present.astype(bool), strict=True)
    ]


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 8)), min_size=2, max_size=40))
def test_rank_metrics_equal_those_of_scikit_learn(pairs: list[tuple[bool, int]]) -> None:
    truth = np.array([shows for shows, _ in pairs])
    score = np.array([value / 8 for _, value in pairs])
    if truth.all() or not truth.any():
        assert np.isnan(auroc(truth, score))
        return
    assert auroc(truth, score) == pytest.approx(reference.roc_auc_score(truth, score), abs=1e-12)
    assert average_precision(truth, score) == pytest.approx(
        reference.average_precision_score(truth, score), abs=1e-12
    )


def test_calibration_error_is_that_of_its_definition() -> None:
    rng = np.random.default_rng(0)
    score, truth = rng.random(500), rng.random(500) < 0.3
    expected = 0.0
    for number in range(15):
        inside = (score > number / 15) & (score <= (number + 1) / 15)
        if inside.any():
            expected += inside.sum() / 500 * abs(truth[inside].mean() - score[inside].mean())
    assert calibration_error(truth, score) == pytest.approx(expected, abs=1e-12)
    assert calibration_error(truth, truth.astype(float)) == 0.0
    assert calibration_error(np.array([True]), np.array([0.0])) == 1.0


@pytest.mark.parametrize("labels", ["multi", "single"])
def test_a_sites_metrics_equal_those_of_scikit_learn(labels: str) -> None:
    rng = np.random.default_rng(1)
    score = rng.dirichlet([1, 1, 1], 60)
    truth = np.eye(3, dtype=bool)[rng.integers(0, 3, 60)] if labels == "single" else rng.random((60, 3)) < 0.4
    found = {name: mean.value for name, mean in _task(labels=labels).summarise(_people(score, truth)).items()}
    called = np.eye(3, dtype=bool)[score.argmax(1)] if labels == "single" else score >= 0.5
    for number, name in enumerate(NAMES):
        t, s, c = truth[:, number], score[:, number], called[:, number]
        expected = {
            "auroc": reference.roc_auc_score(t, s),
            "auprc": reference.average_precision_score(t, s),
            "sensitivity": reference.recall_score(t, c),
            "specificity": reference.recall_score(~t, ~c),
            "balanced_accuracy": reference.balanced_accuracy_score(t, c),
            "f1": reference.f1_score(t, c),
        }
        for metric, value in expected.items():
            assert found[f"{metric}/{name}"] == pytest.approx(value, abs=1e-12), metric
    if labels == "single":
        assert found["accuracy"] == reference.accuracy_score(truth.argmax(1), score.argmax(1))
    declared = {score.name for score in _settings(3, labels=labels).scores}
    assert {name.partition("/")[0] for name in found} == declared


def test_sums_of_sites_are_those_of_all_their_patients() -> None:
    rng = np.random.default_rng(2)
    score, truth = rng.random((50, 3)), rng.random((50, 3)) < 0.5
    people = _people(score, truth)
    together = _task().summarise(people)
    sites = merge([_task().summarise(people[:13]), _task().summarise(people[13:])])
    for name in NAMES:
        for metric in ("sensitivity", "specificity", "f1"):
            assert sites[f"{metric}/{name}"] == together[f"{metric}/{name}"]
        own = [_task().summarise(part)[f"auroc/{name}"].value for part in (people[:13], people[13:])]
        assert sites[f"auroc/{name}"].value == pytest.approx((13 * own[0] + 37 * own[1]) / 50)
        assert sites[f"auroc/{name}"].weight == 50


def test_what_is_not_defined_is_not_reported() -> None:
    score = np.array([[0.9, 0.1, 0.2], [0.8, 0.3, 0.7]])
    found = _task().summarise(_people(score, np.array([[1, 0, 1], [1, 0, 0]])))
    assert {name for name in found if name.endswith("/a")} == {
        "auprc/a", "sensitivity/a", "f1/a", "calibration_error/a",
    }  # fmt: skip
    assert {name for name in found if name.endswith("/b")} == {"specificity/b", "calibration_error/b"}
    assert found["auroc/c"] == Mean(0.0, 2)
    assert _task().summarise([]) == {}


def test_a_patient_is_the_highest_of_the_cases_where_a_class_was_looked_for() -> None:
    def case(score: list[float], present: list[int], annotated: list[int]) -> Prediction:
        return Prediction(
            score=np.array(score), present=np.array(present, bool), annotated=np.array(annotated, bool)
        )

    two = [case([0.2, 0.9, 0.4], [0, 1, 1], [1, 0, 0]), case([0.6, 0.1, 0.3], [1, 0, 0], [1, 1, 0])]
    other = [case([0.5, 0.2, 0.1], [0, 1, 0], [1, 1, 0])]
    found = _task().summarise([two, other])
    assert found["sensitivity/a"] == Mean(1, 1)
    assert found["specificity/a"] == Mean(0, 1)  # 0.5 is predicted
    assert found["auroc/a"] == Mean(2.0, 2)
    assert found["specificity/b"] == Mean(1, 1)  # the 0.9 was of a case in which nobody looked for it
    assert not any(name.endswith("/c") for name in found)


def _batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(6, 3, generator=generator)
    annotated = torch.tensor([[1, 1, 1], [1, 0, 1], [0, 0, 1], [1, 1, 0], [0, 0, 0], [1, 1, 1]]).bool()
    return logits, torch.eye(3, dtype=torch.int64)[[0, 2, 2, 1, 0, 2]], annotated


@pytest.mark.parametrize("labels", LABEL_LOSSES)
def test_losses_are_of_each_sample_and_of_what_is_annotated(labels: str) -> None:
    logits, target, annotated = _batch()
    pair = (binary_cross_entropy, binary_focal) if labels == "multi" else (cross_entropy, focal)
    for loss in pair:
        leaf = logits.clone().requires_grad_()
        values = loss(leaf, target, annotated)
        assert values.shape == (6,)
        alone = torch.stack(
            [loss(logits[n : n + 1], target[n : n + 1], annotated[n : n + 1])[0] for n in range(6)]
        )
        torch.testing.assert_close(values, alone)
        assert values[4].detach() == 0
        values.sum().backward()
        assert leaf.grad is not None
        assert not leaf.grad[~annotated].any()
    torch.testing.assert_close(
        pair[1](logits, target, annotated, gamma=0.0), pair[0](logits, target, annotated)
    )


def test_losses_equal_those_of_torch() -> None:
    logits, target, annotated = _batch()
    everything = torch.ones_like(annotated)
    torch.testing.assert_close(
        binary_cross_entropy(logits, target, everything).mean(),
        nn.functional.binary_cross_entropy_with_logits(logits, target.float()),
    )
    torch.testing.assert_close(
        cross_entropy(logits, target, everything).mean(),
        nn.functional.cross_entropy(logits, target.argmax(1)),
    )
    two = logits[1, [0, 2]]
    torch.testing.assert_close(cross_entropy(logits, target, annotated)[1], -two.log_softmax(0)[1])
    p = logits.sigmoid()
    true = torch.where(target.bool(), p, 1 - p)
    torch.testing.assert_close(
        binary_focal(logits, target, everything), (-((1 - true) ** 2) * true.log()).mean(1)
    )


class _Heads(nn.Module):
    output_weights = (1.0, 0.3)

    def __init__(self) -> None:
        super().__init__()
        self.main, self.auxiliary = nn.Linear(8**3, 3), nn.Linear(8**3, 3)

    def forward(self, image: torch.Tensor) -> Any:
        flat = image.flatten(1)
        return (self.main(flat), self.auxiliary(flat)) if self.training else self.main(flat)


def test_auxiliary_heads_count_by_their_weights() -> None:
    torch.manual_seed(0)
    model, task = _Heads(), _task()
    image = torch.randn(6, 1, 8, 8, 8)
    _, target, annotated = _batch()
    expected = sum(
        weight * binary_cross_entropy(logits, target, annotated).mean()
        for weight, logits in zip((1.0, 0.3), model(image), strict=True)
    )
    torch.testing.assert_close(task.objective(model, image, target, annotated), expected)


class _Brightest(nn.Module):
    """Logits of a picture: its mean, its highest value, and none."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        flat = image.flatten(1)
        return torch.stack([flat.mean(1), flat.amax(1), torch.zeros(len(flat))], 1)


@pytest.mark.parametrize("at_once", [1, 3 * 64, 10**6])
def test_a_volume_is_the_highest_of_its_slices_however_many_are_seen_at_once(at_once: int) -> None:
    volume = np.random.default_rng(0).normal(size=(1, 8, 8, 7)).astype(np.float32)
    task = Classification(_task(2).experiment, voxels_at_once=at_once)
    slices = np.stack([volume[0, ..., z].mean() for z in range(7)]), volume.max(axis=(0, 1, 2))
    expected = [1 / (1 + np.exp(-part.max())) for part in slices]
    model = _Brightest().train()
    assert task.predict(model, volume, "cpu") == pytest.approx([*expected, 0.5], abs=1e-6)
    assert model.training


def test_a_volume_is_seen_whole_in_3d() -> None:
    volume = np.random.default_rng(0).normal(size=(1, 8, 8, 8)).astype(np.float32)
    logits = np.array([volume.mean(), volume.max(), 0.0])
    found = _task(labels="single").predict(_Brightest(), volume, "cpu")
    assert found == pytest.approx(np.exp(logits) / np.exp(logits).sum(), abs=1e-6)


def test_the_headline_is_declared_first() -> None:
    assert [scores[0].name for scores in SCORES.values()] == ["dice", "auroc"]


@pytest.mark.parametrize("loss", [binary_focal, focal])
@pytest.mark.parametrize("gamma", [0.3, 0.5, 2.0])
def test_what_is_known_for_certain_has_a_finite_slope(loss: Any, gamma: float) -> None:
    logits = torch.tensor([[40.0, -40.0, -40.0], [0.5, 0.1, 3.0]], requires_grad=True)
    target = torch.tensor([[1, 0, 0], [0, 0, 1]])
    loss(logits, target, torch.tensor([[True] * 3, [False, False, True]]), gamma=gamma).sum().backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_a_score_that_is_no_number_ranks_nothing() -> None:
    truth, score = np.array([True, False, False]), np.array([np.nan, 0.2, 0.3])
    assert np.isnan(auroc(truth, score))
    assert np.isnan(average_precision(truth, score))
