"""One step of plain gradient descent at each site, and one on all their batches together."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from federated import play

from fedmed_client.train import Course, train
from fedmed_client.workbench import bench_for, seed_for
from fedmed_common import params
from fedmed_common.config import Experiment
from fedmed_common.params import Parameters
from fedmed_strategies.presets import RECIPES

Batch = tuple[torch.Tensor, ...]


class _Given:
    """A sampler that hands out one batch."""

    patients = 1

    def __init__(self, batch: Batch) -> None:
        self._batch = batch

    def draw(self, _rng: np.random.Generator) -> range:
        return range(len(self._batch[0]))

    def cut(self, picks: range) -> Batch:
        return tuple(tensor[picks] for tensor in self._batch)


def assert_federated_is_pooled(experiment: Experiment, batches: Sequence[Batch]) -> Parameters:
    """The average of what each batch changes is what all of them change together, which is returned."""
    bench = bench_for(experiment.order_text())
    start = params.from_model(bench.model)

    def update(batch: Batch) -> Parameters:
        course = Course(round=1, seed=seed_for(0, 1, "x"))
        return train(bench, _Given(batch), start, course, lambda _step: None).delta  # type: ignore[arg-type]

    updates = {str(place): (len(batch[0]), update(batch)) for place, batch in enumerate(batches)}
    federated = play(RECIPES["fedavg"], start, updates)
    pooled = update(tuple(torch.cat(parts) for parts in zip(*batches, strict=True)))
    for name, array in federated.items():
        np.testing.assert_allclose(array, start[name] + pooled[name], rtol=0, atol=1e-6)
    return pooled
