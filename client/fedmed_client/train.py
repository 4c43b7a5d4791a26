"""A site's training in one round."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedmed_client.data.samplers import Sampler
from fedmed_client.workbench import Bench
from fedmed_common import params
from fedmed_common.config import Training
from fedmed_common.metrics import Mean
from fedmed_common.params import Parameters


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """What training changed, and its mean loss (weight: steps)."""

    delta: Parameters
    loss: Mean


def train(
    bench: Bench,
    sampler: Sampler,
    start: Parameters,
    round_number: int,
    seed: np.random.SeedSequence,
    on_step: Callable[[int], None],
) -> Update:
    """Take ``train.steps`` optimizer steps from ``start``. The optimizer begins afresh in every round.

    Raises:
        FloatingPointError: the loss is not finite.
    """
    settings = bench.experiment.train
    params.to_model(start, bench.model)
    bench.model.train()
    optimizer = make_optimizer(
        bench.model, settings, learning_rate(settings, round_number, bench.experiment.rounds)
    )
    total = 0.0
    with torch.random.fork_rng(devices=_cuda_devices(bench.device)):
        batches = _batches(sampler, settings.steps, seed)
        for step, (image, label, annotated) in enumerate(batches, start=1):
            total += _step(bench, optimizer, image, label, annotated)
            on_step(step)
    if not math.isfinite(total):
        raise FloatingPointError(f"the training loss of round {round_number} is not finite")
    return Update(delta=params.delta(bench.model, start), loss=Mean(total, settings.steps))


def make_optimizer(model: torch.nn.Module, settings: Training, rate: float) -> torch.optim.Optimizer:
    """The experiment's optimizer over the parameters that are not frozen."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if settings.optimizer == "sgd":
        return torch.optim.SGD(
            parameters, rate, momentum=settings.momentum, weight_decay=settings.weight_decay
        )
    kind = torch.optim.AdamW if settings.optimizer == "adamw" else torch.optim.Adam
    return kind(parameters, rate, weight_decay=settings.weight_decay)


def learning_rate(settings: Training, round_number: int, rounds: int) -> float:
    """The round's learning rate; cosine falls from the full rate in round 1 towards zero after the last."""
    if settings.schedule == "constant":
        return settings.learning_rate
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * (round_number - 1) / rounds))


def _batches(
    sampler: Sampler, steps: int, seed: np.random.SeedSequence
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    rng = np.random.default_rng(seed)
    torch.manual_seed(int(rng.integers(2**63)))
    for _ in range(steps):
        yield sampler.batch(rng)


def _step(
    bench: Bench, optimizer: torch.optim.Optimizer, image: Tensor, label: Tensor, annotated: Tensor
) -> float:
    optimizer.zero_grad(set_to_none=True)
    loss = bench.task.objective(
        bench.model, image.to(bench.device), label.to(bench.device), annotated.to(bench.device)
    )
    loss.backward()  # type: ignore[no-untyped-call]
    if bench.experiment.train.gradient_norm:
        torch.nn.utils.clip_grad_norm_(bench.model.parameters(), bench.experiment.train.gradient_norm)
    optimizer.step()
    return float(loss.detach())


def _cuda_devices(device: torch.device) -> list[int]:
    return [device.index or 0] if device.type == "cuda" else []
