"""Fed-TCGA-BRCA of FLamby: survival with breast cancer in six regions, and the C-indices that its benchmark published.

Terrail et al. 2022, 'FLamby: datasets and benchmarks for cross-silo federated learning in realistic healthcare settings',
NeurIPS. What is done here, its repository's code does: in ``flamby/datasets/fed_tcga_brca`` ``common.py`` (batches of 8, hence
5 rounds of 100 steps), ``model.py``, ``loss.py`` and ``metric.py``; in ``flamby`` ``config_tcga_brca.json`` (rates) and
``strategies``. The numbers are those of its result files ``tcga_seed42.csv`` to ``tcga_seed46.csv``: for each seed the mean of
the six regions' test C-indices, and of these the mean and standard deviation. Two things differ: SCAFFOLD weighs sites by
patients there, and equally here and in its paper; and of two patients of a batch with the same time, each is at risk when the
other dies here, and one of them there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedmed_common.config import RecipeChoice
from fedmed_simulations.published.plain import Course, federate
from fedmed_simulations.published.survival import concordance, cox_loss
from fedmed_simulations.published.tcga_brca_files import COVARIATES, Region
from fedmed_strategies.presets import RECIPES
from fedmed_strategies.recipe import resolve

ROUNDS, STEPS, BATCH = 5, 100, 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """A row of the benchmark: how it was made, and its C-index with the standard deviation over five seeds."""

    recipe: RecipeChoice
    rate: float
    c_index: float
    deviation: float
    seeds: int = 5


def _adaptive(name: str, rate: float, **more: Any) -> RecipeChoice:
    settings = {"rate": rate, "beta_1": 0.9, "tau": 1e-8, "initial": 0.0} | more
    return RecipeChoice(name=f"fed{name}", settings={name: settings})


PUBLISHED: Mapping[str, Published] = {
    "FedAvg": Published(recipe=RecipeChoice(name="fedavg"), rate=0.1, c_index=0.7319, deviation=0.1811),
    "FedProx": Published(
        recipe=RecipeChoice(name="fedprox", settings={"prox": {"mu": 0.1}}),
        rate=0.1,
        c_index=0.7290,
        deviation=0.1683,
    ),
    "SCAFFOLD": Published(recipe=RecipeChoice(name="scaffold"), rate=0.01, c_index=0.6869, deviation=0.0360),
    "FedAdagrad": Published(recipe=_adaptive("adagrad", 1.0), rate=0.01, c_index=0.8129, deviation=0.0048),
    "FedAdam": Published(
        recipe=_adaptive("adam", 0.1, beta_2=0.999), rate=0.01, c_index=0.8152, deviation=0.0256
    ),
    "FedYogi": Published(
        recipe=_adaptive("yogi", 0.1, beta_2=0.999), rate=0.01, c_index=0.8152, deviation=0.0256
    ),
}


def c_indices(name: str, regions: tuple[Region, ...], seed: int, rounds: int = ROUNDS) -> list[float]:
    """Train by the protocol of the row ``name``; the C-index on each region's test patients.

    The seed makes the first weights, which are those of FLamby's runs with that seed, and the order of patients.
    """
    row = PUBLISHED[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = torch.nn.Linear(len(COVARIATES), 1)
    tables = {f"region_{number}": region.train for number, region in enumerate(regions)}
    course = Course(rounds=rounds, steps=STEPS, batch=BATCH, rate=row.rate)
    federate(resolve(row.recipe, RECIPES), network, tables, course, loss, seed)
    with torch.no_grad():
        return [
            concordance(_column(network(test.inputs), 0), _column(test.targets, 0), _column(test.targets, 1))
            for test in (region.test for region in regions)
        ]


def loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """The Cox loss of a batch: outputs ``(B, 1)``, targets ``(B, 2)``."""
    return cox_loss(outputs[:, 0], targets[:, 0], targets[:, 1])


def _column(values: Tensor, column: int) -> NDArray[np.float64]:
    return values[:, column].double().numpy()


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Our C-index beside the published one. ``tolerance``: two standard errors of the difference of both means."""

    c_index: float
    deviation: float
    tolerance: float
    within: bool


def compare(name: str, ours: list[float]) -> Outcome:
    """What our seeds' C-indices (each the mean over regions, two or more) say of the row ``name``."""
    row, deviation = PUBLISHED[name], stdev(ours)
    tolerance = 2 * math.sqrt(row.deviation**2 / row.seeds + deviation**2 / len(ours))
    return Outcome(
        c_index=mean(ours),
        deviation=deviation,
        tolerance=tolerance,
        within=abs(mean(ours) - row.c_index) <= tolerance,
    )
