"""Weights that a round's answers change for the next: what they have in common."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fedmed_strategies.combining import Weigher, Weights
from fedmed_strategies.pieces import Arrays, Left, Memory, Scene, SiteHalf, Work, own
from fedmed_strategies.weights.fixed import Summed


class Carried(Weights):
    """Shares of all sites, kept from round to round; at first, and for a site that is new, by patients."""

    def shares(self, scene: Scene, memory: Memory) -> dict[str, float]:
        """By site of the scene its share; they sum up to 1."""
        kept = own(memory, f"{self.name}/share")
        patients = sum(site.patients for site in scene.sites)
        raw = {
            site.name: float(kept[site.name]) if site.name in kept else site.patients / patients
            for site in scene.sites
        }
        return normalised(raw) or {site.name: site.patients / patients for site in scene.sites}

    def begin(self, scene: Scene, memory: Memory) -> Weigher:
        """The weigher of one round."""
        shares = self.shares(scene, memory)
        return Summed(lambda answer: shares[answer.site.name])

    def kept(self, shares: Mapping[str, float]) -> Arrays:
        """The shares as they are kept."""
        return {f"{self.name}/share/{name}": np.array(share, np.float64) for name, share in shares.items()}


def normalised(raw: Mapping[str, float]) -> dict[str, float]:
    """The values over their sum; empty where that is not positive."""
    total = sum(raw.values())
    if abs(total - 1.0) < 1e-12:
        return dict(raw)
    return {name: value / total for name, value in raw.items()} if total > 0 else {}


class StartLoss(SiteHalf):
    """Says under ``name`` the loss of the round's global model on some of the site's training patients."""

    def __init__(self, work: Work, name: str) -> None:
        self._work, self._name, self._loss = work, name, 0.0

    def begin(self) -> None:
        """Measure it before the first step."""
        assert self._work.measure is not None  # noqa: S101
        self._loss = self._work.measure()

    def finish(self, delta: Arrays) -> Left:
        """Send it."""
        return Left(scalars={self._name: self._loss})
