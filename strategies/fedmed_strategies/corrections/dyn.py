"""FedDyn: each site's objective gets a linear and a quadratic term, so that all sites agree on where they stop."""

from __future__ import annotations

import numpy as np

from fedmed_common.fields import Positive
from fedmed_common.params import is_statistic
from fedmed_strategies.pieces import Arrays, Correction, Done, Left, Memory, SiteHalf, Work, own, under

_SITE, _SERVER = "dyn/own", "dyn/drift"


class Dyn(Correction):
    """Site: min F_k(w) - <h_k, w> + alpha / 2 |w - w_t|^2; h_k <- h_k - alpha (w_k - w_t).

    Server: h <- h - alpha / N sum_k (w_k - w_t); w <- the plain mean of the w_k, minus h / alpha. ``h_k`` stays at the site.
    """

    name = "dyn"
    source = "Acar et al. 2021, 'Federated learning based on dynamic regularization', ICLR, algorithm 1"
    alpha: Positive = 0.01

    def at_site(self, work: Work) -> SiteHalf:
        """Adds both terms to each step's gradient."""
        return _Site(work, self.alpha)

    def settle(self, done: Done) -> tuple[Arrays, Memory]:
        """The new h, and the parameters moved by it."""
        before, share = own(done.memory, _SERVER), len(done.answers) / len(done.scene.sites)
        drift = {
            name: before.get(name, np.zeros(array.shape)) - self.alpha * share * array.astype(np.float64)
            for name, array in done.step.items()
            if not is_statistic(name)
        }
        moved = {
            name: (array - drift[name] / self.alpha).astype(array.dtype) if name in drift else array
            for name, array in done.parameters.items()
        }
        return moved, under(_SERVER, drift)


class _Site(SiteHalf):
    def __init__(self, work: Work, alpha: float) -> None:
        import torch

        self._work, self._alpha = work, alpha
        self._own = own(work.memory, _SITE)
        parameters = work.parameters
        self._linear = {
            name: torch.from_numpy(array).to(parameters[name])
            for name, array in self._own.items()
            if name in parameters
        }

    def gradients(self, step: int) -> None:
        for name, parameter in self._work.parameters.items():
            if parameter.grad is None:
                continue
            parameter.grad.add_(parameter.detach() - self._work.anchor[name], alpha=self._alpha)
            if name in self._linear:
                parameter.grad.sub_(self._linear[name])

    def finish(self, delta: Arrays) -> Left:
        alpha, zero = np.float32(self._alpha), np.float32(0)
        new = {
            name: self._own.get(name, zero) - alpha * array
            for name, array in delta.items()
            if not is_statistic(name)
        }
        return Left(memory=under(_SITE, new))
