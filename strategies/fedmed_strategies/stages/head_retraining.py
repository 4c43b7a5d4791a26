"""CCVR for dense prediction: the last layer is trained anew on features drawn from every class's moments."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedmed_common.fields import Fraction, Positive
from fedmed_strategies.pieces import Arrays, Layers, Memory, Scene, Stage
from fedmed_strategies.statistics.base import Statistic
from fedmed_strategies.statistics.moments import Moments

if TYPE_CHECKING:
    from torch import nn


class HeadRetraining(Stage):
    """Softmax regression on ``samples`` features of each output, drawn from a Gaussian with its mean and covariance over
    patients.

    It begins with the trained layer, and takes ``steps`` steps of Adam on all samples. The covariance gets ``ridge`` of its mean
    variance on its diagonal. A class that fewer patients show than ``least`` times the noise allows, max(least, 3 sigma sqrt(D)),
    keeps its row. Outputs count by the power ``temper`` of their number of patients: 0, all alike.
    """

    name = "head_retraining"
    source = (
        "Luo et al. 2021, 'No fear of heterogeneity: classifier calibration for federated learning with non-IID data', "
        "NeurIPS, algorithm 1 (CCVR)"
    )
    samples: Annotated[int, Field(ge=1)] = 500
    steps: Annotated[int, Field(ge=1)] = 300
    rate: Positive = 0.01
    ridge: Positive = 0.01
    least: Annotated[int, Field(ge=1)] = 2
    temper: Fraction = 0.0
    from_share: Fraction = 0.8
    moments: Moments = Moments()

    @property
    def statistic(self) -> Statistic:
        """What it asks of the sites."""
        return self.moments

    def check(self, model: nn.Module, layers: Layers, image: tuple[int, ...]) -> None:
        """Refuse a network whose last layer is not one matrix."""
        from fedmed_strategies.layers import last_layer

        last_layer(model, layers)

    def apply(
        self, parameters: Arrays, sums: Arrays, scene: Scene, model: nn.Module
    ) -> tuple[Arrays, Memory]:
        """The parameters with another last layer.

        Raises:
            ConfigError: the network has no last layer that is one matrix.
        """
        from fedmed_strategies.layers import last_layer

        layer = last_layer(model, scene.layers)
        weight, bias = parameters[layer.weight], parameters[layer.bias]
        drawn = self._draw(sums, np.random.default_rng([scene.seed, scene.round, 0xCC]))
        if len(drawn) < 2:
            return parameters, {}
        new_weight, new_bias = self._fit(weight.reshape(len(weight), -1), bias, drawn, sums)
        changed = {layer.weight: new_weight.reshape(weight.shape), layer.bias: new_bias}
        return {**parameters, **changed}, {}

    def _draw(self, sums: Arrays, rng: np.random.Generator) -> dict[int, NDArray[np.float32]]:
        """By output whose moments are known well enough, features ``(samples, D)``."""
        features = sums["first"].shape[1]
        needed = max(self.least, 3 * self.moments.noise_multiplier * np.sqrt(features))
        drawn = {}
        for output, patients in enumerate(sums["patients"].astype(np.float64)):
            if patients < needed:
                continue
            mean = sums["first"][output] / patients
            covariance = sums["second"][output] / patients - np.outer(mean, mean)
            values, vectors = np.linalg.eigh((covariance + covariance.T) / 2)
            values = np.maximum(values, 0.0) + self.ridge * max(float(values.clip(0).mean()), 1e-12)
            noise = rng.standard_normal((self.samples, features)) * np.sqrt(values)
            drawn[output] = (mean + noise @ vectors.T).astype(np.float32)
        return drawn

    def _fit(
        self,
        weight: NDArray[np.float32],
        bias: NDArray[np.float32],
        drawn: dict[int, NDArray[np.float32]],
        sums: Arrays,
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        import torch

        kept = sorted(drawn)
        features = torch.from_numpy(np.concatenate([drawn[output] for output in kept]))
        target = torch.arange(len(kept)).repeat_interleave(self.samples)
        shares = torch.from_numpy(
            np.array([float(sums["patients"][c]) ** self.temper for c in kept], np.float32)
        )
        each = (shares / shares.sum())[target] / self.samples
        rows = torch.from_numpy(weight[kept].copy()).requires_grad_()
        offsets = torch.from_numpy(bias[kept].copy()).requires_grad_()
        optimizer = torch.optim.Adam([rows, offsets], self.rate)
        for _ in range(self.steps):
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(features @ rows.T + offsets, target, reduction="none")
            (loss * each).sum().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        new_weight, new_bias = weight.copy(), bias.copy()
        new_weight[kept], new_bias[kept] = rows.detach().numpy(), offsets.detach().numpy()
        return new_weight, new_bias
