"""What ``[train]`` may ask of the machine changes how a site computes, and not what."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from fedmed_client.engine.compiling import compiled
from fedmed_client.train import Course, Update, make_optimizer, train
from fedmed_client.workbench import Bench, bench_for, numerics, seed_for
from fedmed_common import params
from fedmed_common.config import Experiment
from fedmed_common.errors import ConfigError
from fedmed_common.models import build_model
from fedmed_common.tasks import build_task

STEPS, BATCH = 3, 4
SEED = seed_for(0, 1, "alpha")


@dataclass
class Drawn:
    """A sampler of noise with a square in it. ``too_large``: the steps whose images float16 cannot hold."""

    patch: tuple[int, ...]
    too_large: frozenset[int] = frozenset()
    taken: int = field(default=0)
    patients: int = 1

    def draw(self, rng: np.random.Generator) -> list[tuple[np.ndarray, np.ndarray]]:
        image = rng.normal(size=(BATCH, 1, *self.patch)).astype(np.float32)
        label = np.zeros((BATCH, *self.patch), np.int64)
        label[:, 2:9, 3:8] = 1
        image[:, 0] += label
        if self.taken in self.too_large:
            image *= 1e6
        self.taken += 1
        return list(zip(image, label, strict=True))

    def cut(self, picks: list[tuple[np.ndarray, np.ndarray]]) -> tuple[torch.Tensor, ...]:
        image, label = (torch.from_numpy(np.stack(arrays)) for arrays in zip(*picks, strict=True))
        return image, label, torch.ones(len(picks), 1, dtype=torch.bool)


def experiment(dimensions: int = 2, norm: str = "instance", **settings: object) -> Experiment:
    return Experiment.model_validate(
        {
            "name": "options",
            "rounds": 2,
            "task": {"classes": ["square"], "dimensions": dimensions},
            "data": {"patch": (16, 16, 8)[:dimensions]},
            "model": {"channels": [4, 8, 8], "residual_units": 1, "norm": norm},
            "train": {"steps": STEPS, "batch_size": BATCH, "optimizer": "sgd", "threads": 1, **settings},
        }
    )


def fresh_bench(asked: Experiment) -> Bench:
    bench_for.cache_clear()
    return bench_for(asked.order_text())


def trained(asked: Experiment, too_large: frozenset[int] = frozenset()) -> Update:
    bench = fresh_bench(asked)
    start = params.from_model(build_model(asked))
    sampler: Any = Drawn(asked.data.patch, too_large)
    with numerics(asked, bench.device):
        return train(bench, sampler, start, Course(round=1, seed=SEED), lambda _step: None)


def assert_close(one: Update, other: Update, **tolerance: float) -> None:
    assert one.delta.keys() == other.delta.keys()
    for name, array in one.delta.items():
        np.testing.assert_allclose(array, other.delta[name], err_msg=name, **tolerance)
    np.testing.assert_allclose(one.loss.value, other.loss.value, rtol=1e-5)


@pytest.mark.parametrize(("optimizer", "precision"), [("sgd", "fp32"), ("adamw", "fp32"), ("adamw", "bf16")])
def test_training_is_the_plain_loop_to_the_last_bit(optimizer: str, precision: str) -> None:
    """Also in half precision, where each step sees the weights that the last one left."""
    asked = experiment(optimizer=optimizer, precision=precision, learning_rate=0.1)
    model, task = build_model(asked), build_task(asked)
    start = params.from_model(model)
    steps = make_optimizer(model, asked.train, asked.train.rate_in(1, asked.rounds))
    rng, sampler, total = np.random.default_rng(SEED), Drawn(asked.data.patch), 0.0
    rng.integers(2**63)
    with numerics(experiment(), torch.device("cpu")):
        for _ in range(STEPS):
            steps.zero_grad(set_to_none=True)
            torch.clear_autocast_cache()
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                loss = task.objective(model, *sampler.cut(sampler.draw(rng)))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), asked.train.gradient_norm)
            steps.step()
            total += float(loss.detach())
    update = trained(asked)
    assert (update.loss.total, update.loss.weight) == (total, STEPS)
    for name, array in params.delta(model, start).items():
        assert array.tobytes() == update.delta[name].tobytes(), name


@pytest.mark.parametrize("parts", [2, 4])
def test_a_batch_in_parts_is_the_whole_batch(parts: int) -> None:
    assert_close(trained(experiment()), trained(experiment(accumulate=parts)), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_checkpointing_changes_no_gradient_and_no_statistic(norm: str) -> None:
    assert_close(
        trained(experiment(norm=norm)),
        trained(experiment(norm=norm, checkpointing=True)),
        rtol=1e-6,
        atol=1e-8,
    )


@pytest.mark.parametrize("dimensions", [2, 3])
def test_the_order_of_channels_in_memory_changes_no_number(dimensions: int) -> None:
    update = trained(experiment(dimensions, channels_last=True))
    assert_close(trained(experiment(dimensions)), update, rtol=1e-3, atol=1e-6)
    bench = bench_for(experiment(dimensions, channels_last=True).order_text())
    layout = torch.channels_last if dimensions == 2 else torch.channels_last_3d
    weights = [p for p in bench.model.parameters() if p.dim() == dimensions + 2]
    assert weights
    assert all(weight.is_contiguous(memory_format=layout) for weight in weights)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_learns_the_same_but_for_its_rounding(precision: str) -> None:
    full, half = trained(experiment()), trained(experiment(precision=precision))
    assert half.loss.weight == STEPS
    assert half.loss.value == pytest.approx(full.loss.value, rel=0.02)
    whole = params.norm(full.delta)
    assert params.norm({name: full.delta[name] - half.delta[name] for name in full.delta}) < 0.2 * whole
    assert any(array.tobytes() != half.delta[name].tobytes() for name, array in full.delta.items())


def test_a_step_that_float16_cannot_take_is_left_out_and_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        update = trained(experiment(precision="fp16"), frozenset({1}))
    assert update.loss.weight == STEPS - 1
    assert np.isfinite(params.norm(update.delta))
    assert f"overflowed in 1 of {STEPS} steps of round 1" in caplog.text


def test_a_round_of_which_no_step_could_be_taken_is_an_error() -> None:
    with pytest.raises(FloatingPointError, match="'bf16'"):
        trained(experiment(precision="fp16"), frozenset(range(STEPS)))


def test_a_compiled_network_trains_the_same_parameters_under_the_same_names() -> None:
    asked = experiment(compile=True)
    bench = fresh_bench(asked)
    bench.compiled = compiled(bench.model, backend="aot_eager")
    start = params.from_model(bench.model)
    sampler: Any = Drawn(asked.data.patch)
    with numerics(asked, bench.device):
        update = train(bench, sampler, start, Course(round=1, seed=SEED), lambda _step: None)
    assert_close(trained(experiment()), update, rtol=1e-4, atol=1e-7)


def test_what_cannot_be_compiled_names_the_field() -> None:
    def broken(*_: object) -> Any:
        raise RuntimeError("no compiler here")

    asked = experiment(compile=True)
    bench = fresh_bench(asked)
    bench.compiled = compiled(bench.model, backend=broken)
    sampler: Any = Drawn(asked.data.patch)
    with pytest.raises(ConfigError, match=r"train\.compile: .*cannot be compiled"):
        train(bench, sampler, params.from_model(bench.model), Course(round=1, seed=SEED), lambda _step: None)


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"accumulate": 3}, "accumulate"),
        ({"processes": 3}, "processes"),
        ({"processes": 2, "device": "cuda:1"}, "processes"),
        ({"processes": 2, "compile": True}, "compile"),
        ({"processes": 2, "parallel": "fsdp", "precision": "fp16"}, "precision"),
    ],
)
def test_options_that_do_not_go_together_are_refused_by_name(settings: dict[str, object], names: str) -> None:
    with pytest.raises(ValidationError, match=names):
        experiment(**settings)
