"""Federated equals pooled, where the arithmetic says that it must."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pooled import assert_federated_is_pooled

from fedmed_client.data.sampler import PatchSampler
from fedmed_common.loading import load_experiment
from fedmed_simulations.checks import check_experiment
from fedmed_simulations.federation import make_homes


def test_one_sgd_step_at_each_site_equals_one_on_the_pooled_batch(write_experiment, tmp_path: Path) -> None:
    """FedSGD: McMahan et al. 2017, section 2."""
    file = write_experiment(steps=1)
    text = file.read_text().replace(
        "learning_rate = 1e-2",
        'learning_rate = 1e-2\noptimizer = "sgd"\nmomentum = 0.0\nweight_decay = 0.0\ngradient_norm = 0',
    )
    file.write_text(text)
    experiment = load_experiment(file)
    batches = []
    for home in make_homes(experiment, check_experiment(experiment, file), tmp_path / "sites"):
        sampler = PatchSampler(home.cohort(experiment).of("train"), experiment)
        batches.append(sampler.batch(np.random.default_rng(len(batches))))

    assert_federated_is_pooled(experiment, batches)
