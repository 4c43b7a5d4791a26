"""Membership inference: whether the finished network fits the patients it was trained on better than others.

Source: Yeom et al. 2018, 'Privacy risk in machine learning: analyzing the connection to overfitting', CSF: who has the lower
loss was in training. One number for each patient, over some samples of each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats

from fedmed_client.data.cohort import Cohort, by_patient
from fedmed_client.data.sampler import PatchSampler
from fedmed_client.data.splits import Split
from fedmed_client.workbench import Bench
from fedmed_common.tasks.ranking import auroc

_SAMPLES, _DRAWS = 8, 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class Membership:
    """``auroc``: of telling ``members`` from ``others`` by their loss, 0.5 is guessing; ``low``, ``high``: 95 % of bootstrap
    draws; ``advantage``: the largest difference of true and false positives at any threshold."""

    auroc: float
    low: float
    high: float
    advantage: float
    members: int
    others: int


def losses(bench: Bench, cohort: Cohort, split: Split, seed: int) -> NDArray[np.float64]:
    """The mean loss of each patient of the split, over the same number of samples of each."""
    found = []
    for number, cases in sorted(by_patient(cohort.of(split)).items()):
        sampler = PatchSampler(tuple(cases), bench.experiment)
        rng = np.random.default_rng([seed, number])
        batches = [sampler.of_patient(0, rng) for _ in range(_batches(bench))]
        with torch.no_grad():
            values = [float(bench.task.objective(bench.model, *batch)) for batch in batches]
        found.append(float(np.mean(values)))
    return np.array(found)


def membership(members: Sequence[float], others: Sequence[float], seed: int = 0) -> Membership:
    """How well a threshold on the loss tells members from others."""
    inside, outside = np.asarray(members, np.float64), np.asarray(others, np.float64)
    rng = np.random.default_rng(seed)
    draws = [
        _auroc(rng.choice(inside, len(inside)), rng.choice(outside, len(outside))) for _ in range(_DRAWS)
    ]
    low, high = np.quantile(draws, [0.025, 0.975])
    advantage = stats.ks_2samp(inside, outside, alternative="greater").statistic
    return Membership(
        auroc=_auroc(inside, outside),
        low=float(low),
        high=float(high),
        advantage=float(advantage),
        members=len(inside),
        others=len(outside),
    )


def _auroc(inside: NDArray[np.float64], outside: NDArray[np.float64]) -> float:
    """The chance that a member's loss is the lower of two."""
    member = np.repeat([True, False], [len(inside), len(outside)])
    return auroc(member, -np.concatenate([inside, outside]))


def _batches(bench: Bench) -> int:
    return max(1, _SAMPLES // bench.experiment.train.batch_size)
