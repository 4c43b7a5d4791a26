"""A network and patients so small that what a private step does to them can be said in a line."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedmed_client.patient_gradients import Samples
from fedmed_client.private import Mechanism, clipped_sum
from fedmed_client.workbench import Bench
from fedmed_common.config import Experiment

WIDTH = 64


class Line(nn.Module):
    """``x @ w``: the gradient of the mean of ``y x @ w`` is the mean of ``y x``."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.w


class Products:
    """The task that goes with it."""

    def objective(
        self, model: nn.Module, image: Tensor, target: Tensor, annotated: Tensor, _shaping: object = None
    ) -> Tensor:
        return (model(image) * target).mean()


def experiment(
    *, steps: int = 1, rounds: int = 1, train: dict[str, Any] | None = None, **privacy: Any
) -> Experiment:
    """An experiment on discs of 16 x 16 with the smallest U-Net, and privacy. Its noise is named: to work it out takes long."""
    return Experiment.model_validate(
        {
            "name": "discs",
            "rounds": rounds,
            "task": {"classes": ["disc"], "dimensions": 2},
            "data": {"patch": [16, 16]},
            "model": {"channels": [4, 8], "residual_units": 0},
            "train": {"steps": steps, "batch_size": 2, "threads": 1, **(train or {})},
            "privacy": {"epsilon": 8.0, "sampling_rate": 0.5, "noise_multiplier": 2.0, **privacy},
        }
    )


def line_bench(batch_size: int = 4) -> Bench:
    """The line, as a site would hold it."""
    return Bench(
        experiment=experiment(train={"batch_size": batch_size}),
        model=Line(),
        task=Products(),  # type: ignore[arg-type]
        device=torch.device("cpu"),
    )


def patient(*rows: Sequence[float] | Tensor) -> Samples:
    """A patient whose gradient on the line is the mean of the rows."""
    image = torch.stack([torch.as_tensor(row, dtype=torch.float32) for row in rows])
    return image, torch.ones(len(rows)), torch.ones(len(rows), 1, dtype=torch.bool)


def unit(place: int, length: float = 1.0) -> Tensor:
    """A row along one axis."""
    row = torch.zeros(WIDTH)
    row[place] = length
    return row


def released(bench: Bench, mechanism: Mechanism, patients: Iterable[Samples]) -> Tensor:
    """What leaves the release path for the drawn patients, before any optimizer."""
    parameters = list(bench.model.parameters())
    parts = mechanism.release(clipped_sum(bench, parameters, mechanism, patients))
    return torch.cat([part.flatten() for part in parts])


class Patients:
    """A sampler of given patients."""

    def __init__(self, given: Sequence[Samples]) -> None:
        self._given = given

    @property
    def patients(self) -> int:
        return len(self._given)

    def draw_of(self, number: int, _rng: np.random.Generator) -> int:
        return number

    def cut(self, number: int) -> Samples:
        return self._given[number]
