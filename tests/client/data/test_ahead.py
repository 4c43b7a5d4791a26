"""Batches that threads cut ahead are those that would have been cut, errors and all."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from fedmed_client.data.ahead import Batches
from fedmed_client.data.cohort import Case
from fedmed_client.data.samplers import Sampler, build_sampler
from fedmed_client.train import Course, Update, train
from fedmed_client.workbench import AHEAD_OF_A_GPU, Bench, bench_for, numerics, seed_for
from fedmed_common import params
from fedmed_common.config import Experiment
from fedmed_common.errors import DataError
from fedmed_strategies.presets import RECIPES

MakeExperiment = Callable[..., Experiment]
MakeCase = Callable[..., Case]
SEED = seed_for(0, 1, "alpha")
AHEAD = (1, 3, 9)
KINDS = {
    "slices": ((12, 12), "none", "segmentation"),
    "photographs": ((12, 12), "standard", "segmentation"),
    "volumes": ((12, 12, 6), "standard", "segmentation"),
    "whole slices": ((16, 16), "light", "classification"),
    "whole volumes": ((16, 16, 8), "standard", "classification"),
}


def _sampler(kind: str, make_experiment: MakeExperiment, make_case: MakeCase) -> tuple[Experiment, Sampler]:
    patch, level, task = KINDS[kind]
    rng = np.random.default_rng(0)
    shape = (16, 16, 8)
    classify = task == "classification"
    experiment = make_experiment(
        ("a", "b"),
        patch,
        data={"augmentation": level},
        task={"name": task, "classes": ("a", "b"), "dimensions": len(patch)},
        model={"name": "resnet", "width": 0.05} if classify else {"channels": (4, 8)},
        train={"batch_size": 4, "steps": 5, "threads": 1},
    )
    label = (2, 1, shape[2] if len(patch) == 2 else 1) if classify else shape
    cases = [
        make_case(
            rng.random((1, *shape)),
            rng.integers(0, 2 if classify else 3, label),
            classes=2,
            patient=number // 2,
            oriented=kind != "photographs",
        )
        for number in range(6)
    ]
    return experiment, build_sampler(cases, experiment)


def _taken(sampler: Sampler, ahead: int, count: int = 8) -> list[torch.Tensor]:
    rng = np.random.default_rng(7)
    with Batches((sampler.draw(rng) for _ in range(count)), sampler.cut, ahead) as batches:
        found = [tensor for batch in batches for tensor in batch]
    return [*found, torch.tensor(rng.integers(2**31, size=4))]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("weighed", [False, True])
def test_any_number_ahead_gives_the_same_batches(
    kind: str, weighed: bool, make_experiment: MakeExperiment, make_case: MakeCase
) -> None:
    _, sampler = _sampler(kind, make_experiment, make_case)
    if weighed:
        rare = RECIPES["rare"].sampler
        assert rare is not None
        sampler = sampler.weighed(rare.model_copy(update={"counts": "site"}), {})
    torch.set_num_threads(4)
    try:
        inline = _taken(sampler, 0)
        for ahead in AHEAD:
            found = _taken(sampler, ahead)
            assert len(found) == len(inline)
            assert all(torch.equal(one, other) for one, other in zip(inline, found, strict=True))
        assert torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(1)


def _trained(bench: Bench, sampler: Sampler, prefetch: int, **train_settings: Any) -> Update:
    settings = bench.experiment.train.model_copy(update={"prefetch": prefetch, **train_settings})
    bench = Bench(
        experiment=bench.experiment.model_copy(update={"train": settings}),
        model=bench.model,
        task=bench.task,
        device=bench.device,
    )
    start = {name: np.full_like(array, 0.01) for name, array in params.from_model(bench.model).items()}
    with numerics(bench.experiment, bench.device):
        return train(bench, sampler, start, Course(round=1, seed=SEED), lambda _step: None)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", ["volumes", "whole slices"])
def test_training_is_the_same_to_the_last_bit(
    kind: str, precision: str, make_experiment: MakeExperiment, make_case: MakeCase
) -> None:
    experiment, sampler = _sampler(kind, make_experiment, make_case)
    bench = bench_for(experiment.order_text(), gpu=False)
    inline, ahead = (
        _trained(bench, sampler, prefetch, precision=precision, threads=2) for prefetch in (0, 4)
    )
    assert ahead.loss == inline.loss
    for name, array in inline.delta.items():
        assert array.tobytes() == ahead.delta[name].tobytes(), name
    assert inline.waited > 0
    assert ahead.waited > 0


def _cutters() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("cut")]


def _broken_at(place: int) -> Callable[[int], int]:
    def cut(number: int) -> int:
        if number == place:
            raise DataError("this case cannot be read")
        return number

    return cut


@pytest.mark.parametrize("ahead", [0, *AHEAD])
def test_an_error_comes_where_its_batch_would_have(ahead: int) -> None:
    taken: list[int] = []
    with (
        pytest.raises(DataError, match="cannot be read"),
        Batches(range(20), _broken_at(6), ahead) as batches,
    ):
        taken += batches
    assert _cutters() == []
    given: list[int] = []
    with pytest.raises(DataError), Batches(range(20), _broken_at(6), ahead) as batches:
        for number in batches:
            given.append(number)
    assert given == list(range(6))


@pytest.mark.parametrize("ahead", AHEAD)
def test_who_stops_leaves_no_threads_and_no_more_than_so_many_are_cut(ahead: int) -> None:
    drawn: list[int] = []
    torch.set_num_threads(4)

    def choices() -> Iterator[int]:
        for number in range(1000):
            drawn.append(number)
            yield number

    def stop_at(step: int) -> None:
        raise KeyboardInterrupt

    try:
        with pytest.raises(KeyboardInterrupt), Batches(choices(), lambda number: number, ahead) as batches:
            for number in batches:
                assert len(drawn) == number + 1 + ahead
                assert 0 < len(_cutters()) <= min(ahead, 4)
                if number == 5:
                    stop_at(number)
    finally:
        torch.set_num_threads(1)
    assert _cutters() == []
    assert len(drawn) == 6 + ahead


def test_the_experiment_says_how_many_and_a_gpu_gets_some_by_itself(make_experiment: MakeExperiment) -> None:
    def ahead(device: str, **settings: Any) -> int:
        model, task = torch.nn.Linear(1, 1), object()
        asked = make_experiment(train=settings)
        return Bench(experiment=asked, model=model, task=task, device=torch.device(device)).ahead  # type: ignore[arg-type]

    assert (ahead("cpu"), ahead("cuda")) == (0, AHEAD_OF_A_GPU)
    assert (ahead("cpu", prefetch=3), ahead("cuda", prefetch=0)) == (3, 0)
