"""A site's training with differential privacy for each of its patients.

What leaves is, in each step, the sum of the gradients of a few patients, each clipped as a whole, plus noise: see
:class:`Mechanism` for what that guarantees. It is a way of training of its own, which :mod:`fedmed_client.app` picks for an
experiment with ``[privacy]``; :mod:`fedmed_client.ledger` keeps account of what it spends.

Each patient has one gradient (:mod:`fedmed_client.patient_gradients`), which works with every network and loss: no hooks, no
gradients per sample. Slice-level privacy with the same noise would be no privacy for patients: with sixteen slices each the
epsilon of 7.5 becomes 347.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedmed_client import pulse
from fedmed_client.data.ahead import Batches
from fedmed_client.data.samplers import Sampler
from fedmed_client.engine.compiling import said_by_its_field
from fedmed_client.engine.copying import gpus, pinned
from fedmed_client.engine.memory import checkpointed
from fedmed_client.patient_gradients import Samples, flattened, gradients
from fedmed_client.train import make_optimizer, shaping_of
from fedmed_client.workbench import Bench
from fedmed_common import entropy, params, privacy
from fedmed_common.config import Experiment
from fedmed_common.errors import PolicyRefusal
from fedmed_common.params import Parameters
from fedmed_common.privacy import Spent
from fedmed_common.tasks import PLAIN, Shaping
from fedmed_strategies.pieces import SiteHalf

RULE = "privacy_network"
"""The rule by which a network is refused that cannot be trained so."""
_ROUNDING = 1 - 1e-6
_LARGEST_WHOLE, _EXTREME = 2.0**24, 1e24
_IN_CACHE = 2**16
_LEAST_OF_NORM = 1e-4
_LAST = None
"""Stands after the last patient of a step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Following:
    """A clipping norm that follows a ``quantile`` of gradients' lengths, ``most`` at most (Andrew et al. 2021, 'Differentially
    private learning with adaptive clipping', NeurIPS, algorithm 1). ``charge``: the share of a step's privacy that it takes."""

    quantile: float
    rate: float
    charge: float
    most: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Mechanism:
    """The Gaussian mechanism on a Poisson sample of a site's ``patients`` training patients.

    Guarantee: the releases of n steps have the epsilon of :func:`fedmed_common.privacy.epsilon` for ``noise_multiplier``,
    ``sampling_rate`` and n, at each delta. Neighbours: the site's training patients with and without one of them, all of whose
    images go together. Assumed: what the network makes of one patient depends on no other patient
    (:mod:`fedmed_client.independence` tries that); ``patients`` is not secret, and the same for both neighbours; who is drawn
    and the noise stay unknown. Each clipped gradient is cut to the noise's grid, so that sums are exact
    (:func:`fedmed_common.entropy.grid`).

    Source: Abadi et al. 2016, 'Deep learning with differential privacy', algorithm 1, with patients in the place of examples,
    and with the expected number of those drawn, a constant, in the place of the actual one, which would be a release by itself.

    ``following``: how ``clipping_norm`` changes, which is then that of the next step. ``normal(count)``, ``draw(population,
    rate)``: where chance comes from.
    """

    clipping_norm: float
    noise_multiplier: float
    sampling_rate: float
    patients: int
    following: Following | None = None
    normal: Callable[[int], Tensor] = entropy.normal
    draw: Callable[[int, float], list[int]] = entropy.poisson_sample

    def choose(self) -> list[int]:
        """The patients of one step, perhaps none."""
        return self.draw(self.patients, self.sampling_rate)

    @property
    def deviation(self) -> float:
        """Of the noise on a sum; where the count of lengths is released besides, a little more than alone."""
        left = 1.0 if self.following is None else 1.0 - self.following.charge
        return self.noise_multiplier * self.clipping_norm / math.sqrt(left)

    @property
    def spacing(self) -> float:
        """Of the noise's grid; 1 without noise, where there is none."""
        return entropy.grid(self.deviation) or 1.0

    def clip(self, gradient: Sequence[Tensor]) -> list[Tensor] | None:
        """One patient's gradient in float64, of length ``clipping_norm`` at most, on the noise's grid; None where it is not
        finite."""
        length = length_of(gradient)
        if not math.isfinite(length):
            return None
        return [self.in_grid(part, length).double() * self.spacing for part in gradient]

    def in_grid(self, gradient: Tensor, length: float) -> Tensor:
        """A part of one patient's finite gradient that is ``length`` long in all, cut so that all of it is no longer than
        ``clipping_norm``, in units of ``spacing``.

        Without noise as it is; with noise in whole numbers, which single precision holds where none can be 2^24, and reaches from
        lengths that are not extreme.
        """
        scale = min(1.0, self.clipping_norm * _ROUNDING / length) if length else 1.0
        whole = self.clipping_norm / self.spacing < _LARGEST_WHOLE and length < _EXTREME
        scaled = (gradient if whole and self.deviation else gradient.double()).mul(scale / self.spacing)
        return scaled.trunc_() if self.deviation else scaled

    def after(self, lengths: Sequence[float]) -> Mechanism:
        """The mechanism of the next step, of how many of the drawn patients' gradients were no longer than C.

        Each counts 1/2 or -1/2, so that one patient moves the sum by 1/2. Its noise and that of the gradients are together what
        ``noise_multiplier`` alone would be: 1 / sigma^2 = (1 - charge) / sigma^2 + charge / sigma^2.
        """
        follow = self.following
        if follow is None:
            return self
        within = sum(0.5 if length <= self.clipping_norm else -0.5 for length in lengths)
        deviation = 0.5 * self.noise_multiplier / math.sqrt(follow.charge)
        noisy = within + float(entropy.noise(1, deviation, self.normal)[0])
        share = 0.5 + noisy / (self.sampling_rate * self.patients)
        moved = self.clipping_norm * math.exp(-follow.rate * (min(1.0, max(0.0, share)) - follow.quantile))
        return replace(self, clipping_norm=min(follow.most, max(follow.most * _LEAST_OF_NORM, moved)))

    def release(self, total: Sequence[Tensor]) -> list[Tensor]:
        """The sum over patients with noise, divided by the number of patients that a step draws on average."""
        noise = entropy.noise(sum(part.numel() for part in total), self.deviation, self.normal)
        released = like(noise.to(total[0].device), total)
        for part, summed in zip(released, total, strict=True):
            part.add_(summed).div_(self.sampling_rate * self.patients)
        return released


def mechanism_for(
    experiment: Experiment, patients: int, also: tuple[Spent, ...] = (), sharing: int = 1
) -> Mechanism:
    """The mechanism that an experiment asks of a site with so many training patients.

    ``also``: what the statistics of its recipe spend of the same epsilon. ``sharing``: so many sites at least add their part of
    the noise to a secure sum, each a variance of sigma^2 / ``sharing``.

    Raises:
        ConfigError: it cannot be what it says, or there is no ``[privacy]``.
    """
    privacy.check(experiment, also=also)
    settings = privacy.settings_of(experiment)
    return Mechanism(
        clipping_norm=settings.clipping_norm,
        noise_multiplier=privacy.noise_multiplier(experiment, also) / math.sqrt(sharing),
        sampling_rate=settings.sampling_rate,
        patients=patients,
        following=None
        if settings.clipping_quantile is None
        else Following(
            quantile=settings.clipping_quantile,
            rate=settings.clipping_rate,
            charge=settings.clipping_charge,
            most=settings.clipping_norm,
        ),
    )


def train(
    bench: Bench,
    sampler: Sampler,
    start: Parameters,
    round_number: int,
    mechanism: Mechanism,
    on_step: Callable[[int], None],
    halves: Sequence[SiteHalf] = (),
    at_once: int = 1,
) -> tuple[Parameters, Mechanism]:
    """Take ``train.steps`` private steps from ``start``; what they changed, and the mechanism of the step that would come next.
    The optimizer begins afresh in every round, unless a piece hands its state on.

    No chance in it comes from the experiment's seed, also not which samples of a patient are taken and what dropout drops: with
    a known seed these would depend on who else was drawn. ``halves``: what the recipe's pieces do meanwhile, with gradients
    that have their noise already. ``at_once``: so many patients share a backward pass. ``train.gradient_norm`` is not used. The
    loss is not released.

    Raises:
        PolicyRefusal: ``privacy_network``, where training changed a buffer, which has no noise on it.
    """
    settings = bench.experiment.train
    params.to_model(start, bench.model)
    bench.model.train()
    optimizer = make_optimizer(bench.model, settings, settings.rate_in(round_number, bench.experiment.rounds))
    parameters = bench.parameters
    buffers = {name: buffer.clone() for name, buffer in bench.model.named_buffers()}
    rng = entropy.generator()
    shaping = shaping_of(halves)
    for half in halves:
        half.begin()
        half.take(optimizer)
    with (
        torch.random.fork_rng(devices=gpus(bench.device)),
        checkpointed(bench.model) if settings.checkpointing else nullcontext(),
        said_by_its_field() if settings.compile else nullcontext(),
        _patients(bench, sampler, mechanism, rng) as patients,
    ):
        torch.manual_seed(int(rng.integers(2**63)))
        for step in range(1, settings.steps + 1):
            drawn, lengths = iter(patients.__next__, _LAST), list[float]()
            total = clipped_sum(bench, parameters, mechanism, drawn, shaping, lengths, at_once)
            released = mechanism.release(total)
            mechanism = mechanism.after(lengths)
            for parameter, gradient in zip(parameters, released, strict=True):
                parameter.grad = gradient.to(parameter.dtype)
            for half in halves:
                half.gradients(step)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            on_step(step)
    check_buffers(bench.model, buffers)
    return params.delta(bench.model, start), mechanism


def _patients(
    bench: Bench, sampler: Sampler, mechanism: Mechanism, rng: np.random.Generator
) -> Batches[Any, Any]:
    """The samples of each patient whom a step draws, step by step, with ``_LAST`` after those of each step."""
    cut = pinned(sampler.cut, bench.device)

    def choices() -> Iterator[Any]:
        for _ in range(bench.experiment.train.steps):
            for number in mechanism.choose():
                yield sampler.draw_of(number, rng)
            yield _LAST

    return Batches(choices(), lambda choice: _LAST if choice is _LAST else cut(choice), bench.ahead)


def length_of(gradient: Sequence[Tensor]) -> float:
    """The Euclidean length of all parts together, added up in float64."""
    squares = [part.double().square().sum() for part in gradient]
    return math.sqrt(float(torch.stack(squares).sum()))


def check_buffers(model: nn.Module, before: Mapping[str, Tensor]) -> None:
    """Refuse a network whose buffers are not what they were: they saw patients.

    Raises:
        PolicyRefusal: ``privacy_network``.
    """
    for name, buffer in model.named_buffers():
        if name not in before or not torch.equal(buffer, before[name]):
            raise PolicyRefusal(
                RULE, f"the buffer '{name}' changes in training, and would leave without noise"
            )


def clipped_sum(
    bench: Bench,
    parameters: Sequence[Tensor],
    mechanism: Mechanism,
    drawn: Iterable[Samples],
    shaping: Shaping = PLAIN,
    lengths: list[float] | None = None,
    at_once: int = 1,
) -> list[Tensor]:
    """The sum of the drawn patients' clipped gradients, float64; zero where nobody was drawn.

    A patient whose gradient is not finite counts as one who was not drawn, and nobody is told. ``lengths``: is given how long
    each of the others' was.
    """
    row = torch.zeros(
        sum(part.numel() for part in parameters), dtype=torch.float64, device=parameters[0].device
    )
    total, on_cpu = like(row, parameters), row.device.type == "cpu"
    pieces = _pieces(total) if on_cpu else [row]
    for gradient in gradients(bench, parameters, drawn, at_once, shaping):
        parts = _pieces(gradient) if on_cpu else [flattened(gradient)]
        length = length_of(parts)
        if math.isfinite(length):
            if lengths is not None:
                lengths.append(length)
            for summed, part in zip(pieces, parts, strict=True):
                summed.add_(mechanism.in_grid(part, length))
        pulse.beat()
    row.mul_(mechanism.spacing)
    return total


def _pieces(parts: Sequence[Tensor]) -> list[Tensor]:
    """All their numbers in order, so few at a time that they stay in a processor's cache from one operation to the next."""
    return [piece for part in parts for piece in torch.split(part.detach().reshape(-1), _IN_CACHE)]


def like(flat: Tensor, parts: Sequence[Tensor]) -> list[Tensor]:
    """A row cut into pieces of these shapes."""
    pieces = torch.split(flat, [part.numel() for part in parts])
    return [piece.view(part.shape) for piece, part in zip(pieces, parts, strict=True)]
