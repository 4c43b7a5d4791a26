"""A class that a site is said not to annotate, though its label maps show it: nothing sees it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from fedmed_client.data.cohort import Case, Cohort, without_annotation
from fedmed_client.data.samplers import build_sampler
from fedmed_common.config import Experiment
from fedmed_common.models import build_model
from fedmed_common.tasks import LOSSES, build_task
from fedmed_common.tasks.segmentation import looked_for

HIDDEN = 1
MakeCase = Callable[..., Case]
MakeExperiment = Callable[..., Experiment]


def _cohort(make_case: MakeCase, **changes: Any) -> Cohort:
    label = np.zeros((16, 16, 1), np.uint8)
    label[2:6, 2:6], label[8:14, 8:14], label[0, 0] = 1, 2, 255
    image = np.random.default_rng(0).normal(size=(1, 16, 16, 1)).astype(np.float32)
    cases = tuple(
        replace(make_case(image, label, classes=2, patient=number), **changes) for number in range(3)
    )
    return Cohort(site="s", classes=("a", "b"), cases=cases, manifest_hash="0", skipped=())


def test_counts_and_points_are_gone_and_arrays_stay(make_case: MakeCase) -> None:
    whole = _cohort(make_case)
    part = without_annotation(whole, [HIDDEN])
    assert whole.presence() == {"a": 3, "b": 3}
    assert part.presence() == {"a": 3}
    assert part.manifest_hash != whole.manifest_hash
    for before, after in zip(whole.cases, part.cases, strict=True):
        assert after.label is before.label
        assert after.image is before.image
        assert (after.annotated, after.present) == ((True, False), (True, False))
        assert [len(points) for points in after.points] == [len(before.points[0]), 0]
    assert without_annotation(whole, []) is whole


def test_patches_are_not_centred_on_it(make_case: MakeCase, make_experiment: MakeExperiment) -> None:
    experiment = make_experiment(("a", "b"), (8, 8), data={"foreground_share": 1.0})
    whole = _cohort(make_case)
    rng = np.random.default_rng(0)
    furthest = {
        hidden: max(
            max(pick.corner)
            for _ in range(50)
            for pick in build_sampler(without_annotation(whole, hidden).cases, experiment).draw(rng)
        )
        for hidden in ((), (HIDDEN,))
    }
    assert furthest == {(): 8, (HIDDEN,): 1}


def test_a_classifier_does_not_ask_for_it(make_case: MakeCase, make_experiment: MakeExperiment) -> None:
    experiment = make_experiment(
        ("a", "b"),
        (16, 16),
        data={"foreground_share": 1.0},
        task={"name": "classification", "classes": ("a", "b"), "dimensions": 2},
        model={"name": "resnet", "width": 0.25},
    )
    shows = [np.array([[[1]], [[0]]], np.uint8), np.array([[[0]], [[1]]], np.uint8)]
    cohort = _cohort(make_case)
    cases = tuple(
        replace(case, label=shows[number % 2], present=(not number % 2, bool(number % 2)))
        for number, case in enumerate(cohort.cases)
    )
    hidden = without_annotation(replace(cohort, cases=cases), [HIDDEN]).cases
    rng = np.random.default_rng(0)
    sampler, blind = build_sampler(cases, experiment), build_sampler(hidden, experiment)
    assert {pick.case for _ in range(20) for pick in sampler.draw(rng)} == {0, 1, 2}
    assert {pick.case for _ in range(20) for pick in blind.draw(rng)} == {0, 2}


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_takes_it_for_background(
    name: str, make_case: MakeCase, make_experiment: MakeExperiment
) -> None:
    experiment = make_experiment(
        ("a", "b"), (16, 16), task={"classes": ("a", "b"), "dimensions": 2, "loss": name}
    )
    case = without_annotation(_cohort(make_case), [HIDDEN]).cases[0]
    annotated = torch.tensor([case.annotated])
    logits = torch.from_numpy(np.random.default_rng(1).normal(size=(1, 3, 16, 16)).astype(np.float32))
    task: Any = build_task(experiment)
    shown, cleared = (
        task.loss(logits, torch.from_numpy(label[None, ..., 0].astype(np.int64)), annotated)
        for label in (case.label, looked_for(case))
    )
    assert (case.label == 2).any()
    assert not (looked_for(case) == 2).any()
    assert (looked_for(case) == 255).any()
    assert torch.equal(shown, cleared)


def test_scores_do_not_mention_it(make_case: MakeCase, make_experiment: MakeExperiment) -> None:
    experiment = make_experiment(("a", "b"), (16, 16))
    model, task = build_model(experiment), build_task(experiment)
    whole = _cohort(make_case)
    metrics = task.measure(model, without_annotation(whole, [HIDDEN]).cases[0], "cpu")
    everything = task.measure(model, whole.cases[0], "cpu")
    assert metrics.keys() == {"dice/a"}
    assert everything.keys() == {"dice/a", "dice/b"}
    assert metrics["dice/a"] == everything["dice/a"]


class _Prompted(torch.nn.Module):
    """Keeps what it is prompted with."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))
        self.seen: set[int] = set()

    def prompt(self, target: torch.Tensor) -> torch.Tensor:
        """The label itself."""
        self.seen |= set(target.unique().tolist())
        return target

    def forward(self, image: torch.Tensor, _prompts: torch.Tensor) -> torch.Tensor:
        """Logits of background and two classes."""
        return image.repeat(1, 3, 1, 1) * self.scale


def test_an_interactive_network_gets_no_prompt_for_it(
    make_case: MakeCase, make_experiment: MakeExperiment
) -> None:
    experiment = make_experiment(("a", "b"), (16, 16))
    task: Any = build_task(experiment)
    for cohort, seen in (
        (_cohort(make_case), {0, 1, 2}),
        (without_annotation(_cohort(make_case), [HIDDEN]), {0, 1}),
    ):
        case = cohort.cases[0]
        trained, measured = _Prompted(), _Prompted()
        image, target = (
            torch.from_numpy(case.image[None, ..., 0]),
            torch.from_numpy(case.label[None, ..., 0].astype(np.int64)),
        )
        task.objective(trained, image, target, torch.tensor([case.annotated]))
        task.measure(measured, case, "cpu")
        assert (trained.seen, measured.seen) == (seen, seen)
