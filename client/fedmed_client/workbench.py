"""What a site keeps warm between orders: the network, the task, and the cohort's mapped arrays."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from fedmed_client.data.cohort import Cohort, open_cohort
from fedmed_client.data.samplers import Sampler, build_sampler
from fedmed_client.engine.compiling import compiled
from fedmed_client.engine.memory import lay_channels_last
from fedmed_client.site.audit import AuditLog
from fedmed_client.site.withdrawals import Withdrawals
from fedmed_client.work.outbox import Outbox
from fedmed_common.config import Experiment, Site
from fedmed_common.errors import ConfigError
from fedmed_common.loading import experiment_from_order
from fedmed_common.models import build_model
from fedmed_common.processes import allow_many_open_files, cores, keep_freed_memory
from fedmed_common.tasks import Task, build_task
from fedmed_strategies.layers import layers_of
from fedmed_strategies.pieces import Layers

AHEAD_OF_A_GPU = 4
"""Batches that are cut ahead of a GPU's steps where the experiment does not say how many."""
_HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def _no_step(_site: str, _step: int) -> None:
    return


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteHome:
    """One site as this process sees it.

    ``folder`` is the site's own working folder. ``open`` makes the cohort; a simulation puts drawn partitions in its place.
    ``on_step(site, step)`` is told of each training step. ``outbox`` and ``audit`` are a deployed site's; a simulation has
    neither.
    """

    site: Site
    folder: Path
    open: Callable[[Experiment], Cohort] | None = None
    on_step: Callable[[str, int], None] = _no_step
    outbox: Outbox | None = None
    audit: AuditLog | None = None

    def cohort(self, experiment: Experiment) -> Cohort:
        """The site's cases for the experiment."""
        if self.open:
            return self.open(experiment)
        withdrew = Withdrawals(self.folder).holds
        return open_cohort(self.site, experiment, self.folder, withdrew=withdrew)


@dataclass(slots=True, kw_only=True)
class Bench:
    """An experiment's network and task in this process, shared by all its orders and, in a simulation, by all sites."""

    experiment: Experiment
    model: torch.nn.Module
    task: Task
    device: torch.device
    compiled: torch.nn.Module | None = None
    _layers: Layers | None = None

    @property
    def layers(self) -> Layers:
        """What recipes know of the network, which does not change from order to order."""
        if self._layers is None:
            head, outputs = self.experiment.model.head, self.experiment.plan.outputs
            self._layers = layers_of(self.model, head, outputs)
        return self._layers

    @property
    def parameters(self) -> list[torch.nn.Parameter]:
        """Those that training changes, in the model's order."""
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    @property
    def ahead(self) -> int:
        """How many batches are cut ahead of the step that takes them: ``train.prefetch``, or what suits the device."""
        asked = self.experiment.train.prefetch
        if asked is not None:
            return asked
        return AHEAD_OF_A_GPU if self.device.type == "cuda" else 0

    @property
    def trained_network(self) -> torch.nn.Module:
        """The model as training calls it: compiled, where the experiment asks for it. Its parameters are the model's own."""
        if not self.experiment.train.compile:
            return self.model
        if self.compiled is None:
            self.compiled = compiled(self.model)
        return self.compiled


@lru_cache(maxsize=4)
def experiment_of(order_text: str) -> Experiment:
    """The experiment of an order, read at its first order.

    Raises:
        ConfigError: it is not valid here.
    """
    return experiment_from_order(order_text)


@lru_cache(maxsize=2)
def bench_for(order_text: str, *, gpu: bool = True) -> Bench:
    """The bench of an experiment, built at its first order. ``gpu``: whether it may use one.

    Raises:
        ConfigError: the experiment is not valid here, or asks for a GPU that is not there.
    """
    experiment = experiment_of(order_text)
    device = pick_device(experiment.train.device, gpu=gpu)
    if device.type == "cpu":
        keep_freed_memory()
    model = build_model(experiment).to(device)
    if experiment.train.channels_last:
        lay_channels_last(model)
    return Bench(
        experiment=experiment,
        model=model,
        task=build_task(experiment),
        device=device,
    )


class Cohorts:
    """Cohorts that stay open while the process lives."""

    def __init__(self) -> None:
        self._open: dict[str, tuple[Cohort, Sampler | None]] = {}

    def get(self, home: SiteHome, order_text: str) -> tuple[Cohort, Sampler | None]:
        """The site's cohort and the sampler of its training patients (None where it has none).

        A home of the same name and folder can have another cohort: its label table changed, ``open`` leaves patients out, or one
        withdrew.
        """
        key = self._key(home, order_text)
        if key not in self._open:
            experiment = experiment_of(order_text)
            allow_many_open_files()
            cohort = home.cohort(experiment)
            cases = cohort.of("train")
            self._open[key] = cohort, build_sampler(cases, experiment) if cases else None
        return self._open[key]

    def close(self, home: SiteHome, order_text: str) -> None:
        """Close one, so that files that came since are seen."""
        self._open.pop(self._key(home, order_text), None)

    @staticmethod
    def _key(home: SiteHome, order_text: str) -> str:
        what = repr((home.site, home.folder, home.open, Withdrawals(home.folder).digest, order_text))
        return hashlib.sha256(what.encode()).hexdigest()

    def forget(self) -> None:
        """Close them all: a process that carries out many runs would map more files than it may."""
        self._open.clear()


COHORTS = Cohorts()


def pick_device(name: str, *, gpu: bool = True) -> torch.device:
    """``auto`` is the first CUDA GPU where there is one and ``gpu`` permits it, else the CPU.

    Raises:
        ConfigError: a GPU is named that is not there, or not permitted.
    """
    if name == "auto":
        return torch.device("cuda" if gpu and torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and not (gpu and (device.index or 0) < torch.cuda.device_count()):
        raise ConfigError(f"'{name}' is not there", field="train.device", fix="use 'auto'")
    return device


def seed_for(seed: int, round_number: int, site: str) -> np.random.SeedSequence:
    """Where a site's randomness in a round comes from, so that any round can be replayed. Never for privacy noise."""
    name = int.from_bytes(hashlib.sha256(site.encode()).digest()[:8])
    return np.random.SeedSequence([seed, round_number, name])


def branch(seed: np.random.SeedSequence, number: int) -> np.random.SeedSequence:
    """Another seed, for a second training out of the same order."""
    return np.random.SeedSequence([*(int(value) for value in seed.entropy), number])  # type: ignore[union-attr]


@contextmanager
def numerics(experiment: Experiment, device: torch.device, most_threads: int = 0) -> Iterator[None]:
    """Threads, determinism and precision of one order's arithmetic; the caller's settings come back afterwards.

    ``most_threads``: what the site gives; 0: all cores.
    """
    threads = torch.get_num_threads()
    deterministic, benchmark = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    wanted = experiment.train.threads or cores()
    torch.set_num_threads(min(wanted, most_threads or wanted))
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    try:
        half = _HALVES.get(experiment.train.precision)
        # With its cache, autocast would hold the weights in half precision as they were in the first of all steps.
        with torch.autocast(device.type, half, enabled=half is not None, cache_enabled=False):
            yield
    finally:
        torch.set_num_threads(threads)
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = deterministic, benchmark
