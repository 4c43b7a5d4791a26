"""q-FFL: sites on which the model is bad count more."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar

from pydantic import Field

from fedmed_common import params
from fedmed_strategies.combining import Weigher, Weights
from fedmed_strategies.pieces import Answer, Memory, Scene, SiteHalf, Work
from fedmed_strategies.weights.reported import StartLoss

_LEAST_LOSS = 1e-10


class Fair(Weights):
    """The step is sum_k F_k^q L delta_k / sum_k h_k, with h_k = q F_k^(q-1) |L delta_k|^2 + L F_k^q and L = 1 / learning rate.

    F_k is the loss of the round's global model on some of the site's training patients. With q = 0 all sites count alike.
    """

    name = "fair"
    source = "Li et al. 2020, 'Fair resource allocation in federated learning', ICLR, algorithm 2"
    q: Annotated[float, Field(ge=0.0, le=5.0)] = 0.1
    measures = True
    scalars: ClassVar[Mapping[str, tuple[float, float]]] = {"start_loss": (0.0, 1e4)}

    def at_site(self, work: Work) -> SiteHalf:
        """Measures F_k."""
        return StartLoss(work, "start_loss")

    def begin(self, scene: Scene, memory: Memory) -> Weigher:
        """The weigher of one round."""
        return _Weigher(self.q, 1.0 / scene.rate)


class _Weigher:
    def __init__(self, q: float, lipschitz: float) -> None:
        self._q, self._lipschitz, self._total = q, lipschitz, 0.0

    def weigh(self, answer: Answer) -> float:
        loss = answer.scalars["start_loss"] + _LEAST_LOSS
        learned = {name: array for name, array in answer.delta.items() if not params.is_statistic(name)}
        length = self._lipschitz * params.norm(learned)
        self._total += self._q * loss ** (self._q - 1) * length**2 + self._lipschitz * loss**self._q
        return float(self._lipschitz * loss**self._q)

    def total(self) -> float:
        return self._total
