"""Federated equals pooled, where the arithmetic says that it must."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from fedmed_client.data.sampler import PatchSampler
from fedmed_client.train import train
from fedmed_client.workbench import bench_for, seed_for
from fedmed_common import params
from fedmed_common.loading import load_experiment
from fedmed_common.params import WeightedMean
from fedmed_simulations.checks import check_experiment
from fedmed_simulations.federation import make_homes
from fedmed_strategies.presets import RECIPES


class _Given:
    """A sampler that hands out one batch."""

    def __init__(self, batch: tuple[torch.Tensor, ...]) -> None:
        self._batch = batch

    def batch(self, _rng: np.random.Generator) -> tuple[torch.Tensor, ...]:
        return self._batch


def test_one_sgd_step_at_each_site_equals_one_on_the_pooled_batch(write_experiment, tmp_path: Path) -> None:
    """FedSGD: McMahan et al. 2017, section 2."""
    file = write_experiment(steps=1)
    text = file.read_text().replace(
        "learning_rate = 1e-2",
        'learning_rate = 1e-2\noptimizer = "sgd"\nmomentum = 0.0\nweight_decay = 0.0\ngradient_norm = 0',
    )
    file.write_text(text)
    experiment = load_experiment(file)
    bench = bench_for(experiment.order_text())
    start = params.from_model(bench.model)
    batches = []
    for home in make_homes(experiment, check_experiment(experiment, file), tmp_path / "sites"):
        sampler = PatchSampler(home.cohort(experiment).of("train"), experiment)
        batches.append(sampler.batch(np.random.default_rng(len(batches))))

    def update(batch: tuple[torch.Tensor, ...]) -> params.Parameters:
        return train(bench, _Given(batch), start, 1, seed_for(0, 1, "x"), lambda _step: None).delta  # type: ignore[arg-type]

    mean = WeightedMean(start)
    for batch in batches:
        mean.add(update(batch), RECIPES["fedavg"].weigh(len(batch[0])))
    federated = RECIPES["fedavg"].server_step(start, mean.mean())
    pooled = update(tuple(torch.cat(parts) for parts in zip(*batches, strict=True)))
    for name, array in federated.items():
        np.testing.assert_allclose(array, start[name] + pooled[name], rtol=0, atol=1e-6)
