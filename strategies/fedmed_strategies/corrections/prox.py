"""FedProx: a site's parameters are drawn back to the global model."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from fedmed_strategies.pieces import Correction, SiteHalf, Work


class Prox(Correction):
    """Adds mu (w - w_t) to each step's gradient: that of mu / 2 |w - w_t|^2."""

    name = "prox"
    source = "Li et al. 2020, 'Federated optimization in heterogeneous networks', MLSys, equation 2"
    mu: Annotated[float, Field(ge=0.0)] = 0.01

    def at_site(self, work: Work) -> SiteHalf | None:
        """Draws back; with mu = 0 nothing does."""
        return Pull(work, self.mu) if self.mu else None


class Pull(SiteHalf):
    """Draws the parameters to the round's global model."""

    def __init__(self, work: Work, strength: float) -> None:
        self._work, self._strength = work, strength

    def gradients(self, step: int) -> None:
        """Add the pull."""
        for name, parameter in self._work.parameters.items():
            if parameter.grad is not None:
                parameter.grad.add_(parameter.detach() - self._work.anchor[name], alpha=self._strength)
