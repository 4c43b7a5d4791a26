"""Several patients in one backward pass: each has the gradient that they have alone, or the network is left to the loop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from architectures import EACH_BUT_MOST_SLOW
from architectures import experiment as of_architecture
from private_sites import Patients, experiment
from torch import Tensor

from fedmed_client import private
from fedmed_client.patient_gradients import Samples, can_map, invented, patients_at_once
from fedmed_client.private import Mechanism, clipped_sum
from fedmed_client.workbench import Bench, bench_for
from fedmed_common import params
from fedmed_common.errors import ConfigError
from fedmed_common.models import build_model
from fedmed_common.tasks import Shaping, build_task

C = 0.7
LEFT_TO_THE_LOOP = {("segnet", 3), ("googlenet", 2), ("inception_v3", 2), ("densenet", 3)}
"""Dropout beside auxiliary outputs, or rounding that grows beyond 1e-4."""


def _samples(count: int) -> Samples:
    image, target = torch.zeros(count, 1, 16, 16), torch.zeros(count, 16, 16, dtype=torch.int64)
    return image, target, torch.ones(count, 1, dtype=torch.bool)


EXAMPLE = _samples(2)


def _bench(**changes: Any) -> Bench:
    return replace(bench_for(experiment(**changes).order_text()))


def _flat(parts: list[Tensor]) -> Tensor:
    return torch.cat([part.double().flatten() for part in parts])


def _mechanism(**changes: Any) -> Mechanism:
    plain = Mechanism(clipping_norm=C, noise_multiplier=1.0, sampling_rate=0.5, patients=6)
    return replace(plain, **changes)


@pytest.mark.parametrize(("name", "dimensions"), EACH_BUT_MOST_SLOW, ids=str)
def test_nearly_every_architecture_can_be_mapped_over_patients(name: str, dimensions: int) -> None:
    asked = of_architecture(name, dimensions)
    model = build_model(asked)
    bench = Bench(experiment=asked, model=model, task=build_task(asked), device=torch.device("cpu"))
    classes, whole = len(asked.task.classes), asked.task.name == "classification"
    example = (
        torch.zeros(2, asked.data.channels, *asked.data.patch),
        torch.zeros((2, classes) if whole else (2, *asked.data.patch), dtype=torch.int64),
        torch.ones(2, classes, dtype=torch.bool),
    )
    before = {key: value.clone() for key, value in model.state_dict().items()}
    assert can_map(bench, example) is ((name, dimensions) not in LEFT_TO_THE_LOOP)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(module.training for module in model.modules())


def _doubled(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda logits, label, annotated: 2 * loss(logits, label, annotated)


def _brightness(image: Tensor, outputs: Any, _target: Tensor, _annotated: Tensor) -> Tensor:
    return (image.flatten(1).mean(1) * outputs.flatten(1).square().mean(1)).abs()


@pytest.mark.parametrize("shaping", [Shaping(), Shaping(recast=_doubled), Shaping(extra=_brightness)])
def test_the_sum_is_that_of_the_loop(shaping: Shaping) -> None:
    """Of nine patients, four at once, of whom one has another number of samples."""
    bench = _bench()
    parameters = list(bench.model.parameters())
    drawn = [invented(_samples(3 if number == 5 else 2), seed=number) for number in range(9)]
    one, several = (
        _flat(clipped_sum(bench, parameters, _mechanism(), drawn, shaping, lengths, at_once))
        for at_once, lengths in ((1, []), (4, []))
    )
    assert float((one - several).norm()) <= 1e-4 * float(one.norm())
    assert float(one.norm()) > 0


def test_a_patients_place_among_others_does_not_matter() -> None:
    bench = _bench()
    parameters = list(bench.model.parameters())
    lengths: list[float] = []
    patients = [invented(EXAMPLE, seed=number) for number in range(4)]
    clipped_sum(bench, parameters, _mechanism(), patients, lengths=lengths, at_once=4)
    other_way: list[float] = []
    clipped_sum(bench, parameters, _mechanism(), patients[::-1], lengths=other_way, at_once=4)
    assert lengths == pytest.approx(other_way[::-1], rel=1e-5)
    assert len(set(lengths)) == 4


HOSTILE = {
    "large pixels": invented(EXAMPLE, 4, scale=1e6),
    "1e30": invented(EXAMPLE, 5, scale=1e30),
    "NaN": invented(EXAMPLE, 6, scale=float("nan")),
    "infinite": invented(EXAMPLE, 7, scale=float("inf")),
    "constant": invented(EXAMPLE, 8, scale=0.0),
    "200 slices": invented(_samples(200), 9),
}


@pytest.mark.parametrize("hostile", HOSTILE.values(), ids=HOSTILE)
def test_no_patient_moves_the_sum_by_more_than_the_norm(hostile: Samples) -> None:
    bench = _bench()
    parameters = list(bench.model.parameters())
    others = [invented(EXAMPLE, seed) for seed in (1, 2, 3)]
    without = clipped_sum(bench, parameters, _mechanism(), others, at_once=4)
    with_it = clipped_sum(bench, parameters, _mechanism(), [*others[:1], hostile, *others[1:]], at_once=4)
    moved = _flat(with_it) - _flat(without)
    assert torch.isfinite(moved).all()
    assert float(moved.norm()) <= 1.0001 * C


def test_a_step_is_that_of_the_loop_but_for_rounding() -> None:
    asked = experiment(train={"optimizer": "sgd", "learning_rate": 0.5}, steps=2)
    changes = []
    for at_once in (1, 3):
        bench = replace(bench_for(asked.order_text()))
        start = params.from_model(build_model(asked))
        drawn = iter([[0, 1, 2, 3], [2, 1]])
        patients = Patients([invented(EXAMPLE, seed) for seed in range(4)])
        change, _ = private.train(
            bench,
            patients,  # type: ignore[arg-type]
            start,
            1,
            _mechanism(noise_multiplier=0.0, draw=lambda _population, _rate, drawn=drawn: next(drawn)),
            lambda _step: None,
            at_once=at_once,
        )
        changes.append(torch.cat([torch.from_numpy(array).double().flatten() for array in change.values()]))
    assert float((changes[0] - changes[1]).norm()) <= 1e-4 * float(changes[0].norm())
    assert float(changes[0].norm()) > 0


def test_a_loss_in_which_patients_touch_is_left_to_the_loop() -> None:
    asked = experiment()
    task = asked.task.model_copy(update={"loss": "batch_dice"})
    coupled = asked.model_copy(update={"task": task})
    bench = Bench(
        experiment=coupled, model=build_model(asked), task=build_task(coupled), device=torch.device("cpu")
    )
    assert not can_map(bench, EXAMPLE)


class _BranchesOnPixels(torch.nn.Module):
    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.inner(x if float(x.mean()) > 0 else -x)
        return found


def test_several_are_taken_where_that_was_seen_to_be_faster_and_as_many_as_fit() -> None:
    def found(costs: dict[int, float], most: int = 100) -> int:
        def seconds(call: Callable[[], Any]) -> float:
            count = len(call())
            if count not in costs:
                raise torch.OutOfMemoryError
            return costs[count]

        bench = replace(_bench(), model=build_model(experiment()))
        return patients_at_once(bench, EXAMPLE, most, seconds)

    assert found({1: 1.0, 2: 1.2, 4: 1.6, 8: 3.1}) == 4
    assert found({1: 1.0, 2: 1.2, 4: 1.6}) == 4
    assert found({1: 1.0, 2: 1.2, 4: 1.6, 8: 1.7}, most=7) == 4
    assert found({1: 1.0, 2: 2.0, 4: 1.0}) == 1
    assert found({1: 1.0}) == 1


def test_on_a_cpu_one_is_taken_and_several_where_the_experiment_says_so() -> None:
    assert patients_at_once(_bench(), EXAMPLE, 100) == 1
    assert patients_at_once(_bench(patients_at_once=6), EXAMPLE, 100) == 6


def test_a_network_that_cannot_be_mapped_is_refused_where_several_are_asked_for() -> None:
    bench = replace(_bench(patients_at_once=4), model=_BranchesOnPixels(build_model(experiment())))
    assert not can_map(bench, EXAMPLE)
    with pytest.raises(ConfigError, match=r"privacy\.patients_at_once"):
        patients_at_once(bench, EXAMPLE, 100)
    assert patients_at_once(replace(bench, experiment=experiment()), EXAMPLE, 100, lambda _call: 1.0) == 1
