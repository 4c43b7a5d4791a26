"""A site's training in one round."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedmed_client.data.ahead import Batches
from fedmed_client.data.sampler import Batch
from fedmed_client.data.samplers import Sampler
from fedmed_client.engine.compiling import said_by_its_field
from fedmed_client.engine.copying import gpus, on_device, pinned
from fedmed_client.engine.memory import channels_last, checkpointed
from fedmed_client.engine.team import ALONE, Team
from fedmed_client.workbench import Bench
from fedmed_common import params
from fedmed_common.config import Training
from fedmed_common.metrics import Mean
from fedmed_common.params import Parameters
from fedmed_common.tasks import PLAIN, Shaping
from fedmed_common.tasks.losses import Loss
from fedmed_common.wire_arrays import row_like
from fedmed_strategies.pieces import SiteHalf

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """What training changed, its mean loss (weight: steps), and the seconds in which it waited for its batches."""

    delta: Parameters
    loss: Mean
    waited: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """One training of a round. ``halves``: what the recipe's pieces do meanwhile.

    ``steps``, ``rate``: in the place of what ``train`` says.
    """

    round: int
    seed: np.random.SeedSequence
    halves: Sequence[SiteHalf] = ()
    steps: int | None = None
    rate: float | None = None


def train(
    bench: Bench,
    sampler: Sampler,
    start: Parameters,
    course: Course,
    on_step: Callable[[int], None],
    team: Team = ALONE,
) -> Update:
    """Take optimizer steps from ``start``. The optimizer begins afresh each time, unless a piece hands its state on.

    ``team``: the processes that share each batch; all draw the same samples, and each cuts its own.

    Raises:
        FloatingPointError: the loss is not finite, or float16 was too small for every step.
    """
    settings = bench.experiment.train
    team.load(start, bench.model)
    bench.model.train()
    network = team.prepared(bench.trained_network)
    rate = course.rate or settings.rate_in(course.round, bench.experiment.rounds)
    optimizer = make_optimizer(bench.model, settings, rate)
    stepper = _Stepper(bench, network, optimizer, team, course.halves)
    count = course.steps or settings.steps_of(sampler.patients)
    for half in course.halves:
        half.begin()
        half.take(optimizer)
    summed, done = torch.zeros((), dtype=torch.float64, device=bench.device), 0
    choices = _choices(sampler, count, course.seed, team)
    with (
        torch.random.fork_rng(devices=gpus(bench.device)),
        checkpointed(bench.model) if settings.checkpointing else nullcontext(),
        Batches(choices, pinned(sampler.cut, bench.device), bench.ahead) as batches,
    ):
        for step, batch in enumerate(batches, start=1):
            loss, taken = stepper.step(batch, step)
            if taken:
                summed, done = summed + loss, done + 1
            on_step(step)
    total = float(summed)
    if not math.isfinite(total):
        raise FloatingPointError(f"the training loss of round {course.round} is not finite")
    _tell_skipped(count, done, course.round)
    names = bench.layers.trained
    row = row_like({name: start[name] for name in names})
    delta = params.delta(team.whole(bench.model), start, names, row)
    return Update(delta=delta, loss=Mean(total, done), waited=batches.waited)


def shaping_of(halves: Sequence[SiteHalf]) -> Shaping:
    """What the pieces make of the task's loss: recast by one after the other, with the terms of all that add one."""
    recasting = [half for half in halves if type(half).recast is not SiteHalf.recast]
    teaching = [half for half in halves if half.teaches]
    if not recasting and not teaching:
        return PLAIN

    def recast(loss: Loss) -> Loss:
        for half in recasting:
            loss = half.recast(loss)
        return loss

    def extra(image: Tensor, outputs: Any, target: Tensor, annotated: Tensor) -> Tensor:
        terms = [half.term(image, outputs, target, annotated) for half in teaching]
        return torch.stack(terms).sum(0)

    return Shaping(recast=recast, extra=extra if teaching else None)


def make_optimizer(model: torch.nn.Module, settings: Training, rate: float) -> torch.optim.Optimizer:
    """The experiment's optimizer over the parameters that are not frozen."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if settings.optimizer == "sgd":
        return torch.optim.SGD(
            parameters, rate, momentum=settings.momentum, weight_decay=settings.weight_decay
        )
    kind = torch.optim.AdamW if settings.optimizer == "adamw" else torch.optim.Adam
    return kind(parameters, rate, weight_decay=settings.weight_decay)


def _choices(
    sampler: Sampler, steps: int, seed: np.random.SeedSequence, team: Team
) -> Iterator[Sequence[Any]]:
    """This process's part of each batch, chosen. The first process draws what one alone would; dropout differs from one to the
    next."""
    rng = np.random.default_rng(seed)
    torch.manual_seed((int(rng.integers(2**63)) + team.rank) % 2**63)
    for _ in range(steps):
        picks = sampler.draw(rng)
        mine = len(picks) // team.size
        yield picks[team.rank * mine : (team.rank + 1) * mine]


@dataclass(slots=True)
class _Stepper:
    """Takes optimizer steps. ``network``: the model as the objective sees it."""

    bench: Bench
    network: nn.Module
    optimizer: torch.optim.Optimizer
    team: Team
    halves: Sequence[SiteHalf] = ()
    shaping: Shaping = field(init=False)
    scaler: torch.amp.GradScaler = field(init=False)

    def __post_init__(self) -> None:
        enabled = self.bench.experiment.train.precision == "fp16"
        self.scaler = torch.amp.GradScaler(self.bench.device.type, enabled=enabled)
        self.shaping = shaping_of(self.halves)

    def step(self, batch: Batch, number: int) -> tuple[Tensor, bool]:
        """One step on a batch: its loss, and whether it was taken; float16 that overflowed takes none.

        The loss stays on its device: reading it would wait for the GPU, which would then wait for the next step.
        """
        settings = self.bench.experiment.train
        self.optimizer.zero_grad(set_to_none=True)
        loss = self._gradients(batch)
        for half in self.halves:
            if half.perturbs:
                half.perturb()
                self.optimizer.zero_grad(set_to_none=True)
                self._gradients(batch)
                half.restore()
        self.scaler.unscale_(self.optimizer)
        if settings.gradient_norm:
            torch.nn.utils.clip_grad_norm_(self.bench.model.parameters(), settings.gradient_norm)
        for half in self.halves:
            half.gradients(number)
        scale = self.scaler.get_scale()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return self.team.mean(loss).double(), self.scaler.get_scale() >= scale

    def _gradients(self, batch: Batch) -> Tensor:
        """Add up the gradients of the batch's parts, each part's loss weighted by its share; the batch's loss."""
        settings = self.bench.experiment.train
        parts = list(zip(*(tensor.chunk(settings.accumulate) for tensor in batch), strict=True))
        losses = []
        for number, part in enumerate(parts, start=1):
            image, target, annotated = on_device(part, self.bench.device)
            if settings.channels_last:
                image = channels_last(image)
            with (
                self.team.collecting(self.network, last=number == len(parts)),
                said_by_its_field() if settings.compile else nullcontext(),
            ):
                loss = self.bench.task.objective(self.network, image, target, annotated, self.shaping)
                if len(parts) > 1:
                    loss = loss * (len(image) / len(batch[0]))
                self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            losses.append(loss.detach())
        return losses[0] if len(losses) == 1 else torch.stack(losses).sum()


def _tell_skipped(steps: int, done: int, round_number: int) -> None:
    """Raises FloatingPointError where no step was taken."""
    if not done:
        raise FloatingPointError(
            f"float16 overflowed in every step of round {round_number}; use train.precision = 'bf16'"
        )
    if done < steps:
        _log.warning(
            "float16 overflowed in %d of %d steps of round %d; they were left out",
            steps - done,
            steps,
            round_number,
        )
