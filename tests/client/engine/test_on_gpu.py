"""What training on a GPU does that training on a CPU does not. Most of it runs where a GPU is."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
import torch

from fedmed_client.engine.copying import gpus, on_device, pinned
from fedmed_client.train import Course, Update, train
from fedmed_client.workbench import AHEAD_OF_A_GPU, bench_for, numerics, seed_for
from fedmed_common import params
from fedmed_common.config import Experiment

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU is at hand")
Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


class Squares:
    """A sampler of noise with a square in it, which remembers who cut."""

    patients = 1

    def __init__(self) -> None:
        self.cutters: set[str] = set()

    def draw(self, rng: np.random.Generator) -> list[int]:
        return rng.integers(2**32, size=4).tolist()

    def cut(self, picks: list[int]) -> Batch:
        self.cutters.add(threading.current_thread().name)
        image = np.stack([np.random.default_rng(seed).normal(size=(1, 32, 32)) for seed in picks])
        label = np.zeros((len(picks), 32, 32), np.int64)
        label[:, 4:20, 3:18] = 1
        image[:, 0] += label
        annotated = torch.ones(len(picks), 1, dtype=torch.bool)
        return torch.from_numpy(image.astype(np.float32)), torch.from_numpy(label), annotated


def _trained(sampler: Any, **settings: Any) -> Update:
    asked = Experiment.model_validate(
        {
            "name": "gpu",
            "rounds": 1,
            "task": {"classes": ["square"], "dimensions": 2},
            "data": {"patch": [32, 32]},
            "model": {"channels": [4, 8, 8]},
            "train": {"steps": 6, "batch_size": 4, **settings},
        }
    )
    bench = bench_for(asked.order_text())
    start = {name: np.full_like(array, 0.01) for name, array in params.from_model(bench.model).items()}
    course = Course(round=1, seed=seed_for(0, 1, "site"))
    with numerics(asked, bench.device):
        return train(bench, sampler, start, course, lambda _step: None)


def test_a_batch_is_copied_but_for_what_a_loss_asks_of_it() -> None:
    image, target, annotated = on_device(Squares().cut([1, 2]), torch.device("meta"))
    assert [tensor.device.type for tensor in (image, target, annotated)] == ["meta", "meta", "cpu"]


def test_a_cpu_gets_its_batches_as_they_are_cut() -> None:
    sampler = Squares()
    assert pinned(sampler.cut, torch.device("cpu")) == sampler.cut
    assert gpus(torch.device("cpu")) == []
    assert gpus(torch.device("cuda:3")) == [3]


@needs_gpu
def test_a_gpu_gets_its_batches_from_pinned_memory() -> None:
    image, target, annotated = pinned(Squares().cut, torch.device("cuda"))([1, 2])
    assert [tensor.is_pinned() for tensor in (image, target, annotated)] == [True, True, False]
    assert all(part.is_pinned() for part in image.chunk(2))
    assert gpus(torch.device("cuda")) == [torch.cuda.current_device()]


@needs_gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_batches_that_are_cut_ahead_train_a_gpu_to_the_same_last_bit(precision: str) -> None:
    samplers = Squares(), Squares()
    inline = _trained(samplers[0], precision=precision, prefetch=0, accumulate=2)
    ahead = _trained(samplers[1], precision=precision, accumulate=2)
    assert not any(name.startswith("cut") for name in samplers[0].cutters)
    assert 1 <= sum(name.startswith("cut") for name in samplers[1].cutters) <= AHEAD_OF_A_GPU
    assert inline.loss == ahead.loss
    for name, array in inline.delta.items():
        assert array.tobytes() == ahead.delta[name].tobytes(), name


@needs_gpu
def test_a_gpu_takes_the_steps_of_a_cpu() -> None:
    sampler = Squares()
    on_cpu, on_gpu = (_trained(sampler, optimizer="sgd", device=device) for device in ("cpu", "cuda"))
    assert on_gpu.loss.value == pytest.approx(on_cpu.loss.value, rel=1e-3)
    for name, array in on_cpu.delta.items():
        np.testing.assert_allclose(on_gpu.delta[name], array, rtol=0.05, atol=1e-4, err_msg=name)
