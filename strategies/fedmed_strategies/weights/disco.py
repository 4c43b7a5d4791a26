"""FedDisco: sites whose classes are distributed evenly count more."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from pydantic import Field

from fedmed_strategies.combining import Weigher, Weights
from fedmed_strategies.pieces import Memory, Scene, Site
from fedmed_strategies.weights.fixed import Summed


class Disco(Weights):
    """p_k ~ max(n_k / n - a d_k + b, 0), d_k the site's share of all sites' divergences from the uniform distribution.

    The divergence is Kullback and Leibler's. A site's classes are counted in training patients who show them, and a hidden
    count as 1; a site that shows none is as far from uniform as can be. Where all weights become 0, sites count by patients."""

    name = "disco"
    source = "Ye et al. 2023, 'FedDisco: federated learning with discrepancy-aware collaboration', ICML, equation 6"
    a: Annotated[float, Field(ge=0.0)] = 0.5
    b: Annotated[float, Field(ge=0.0)] = 0.1

    def begin(self, scene: Scene, memory: Memory) -> Weigher:
        """The weigher of one round, of shares among all sites that can train."""
        patients = sum(site.patients for site in scene.sites)
        apart = {site.name: discrepancy(site, scene.classes) for site in scene.sites}
        together = sum(apart.values()) or 1.0
        shares = {
            site.name: max(site.patients / patients - self.a * apart[site.name] / together + self.b, 0.0)
            for site in scene.sites
        }
        if not any(shares.values()):
            shares = {site.name: site.patients / patients for site in scene.sites}
        return Summed(lambda answer: shares[answer.site.name])


def discrepancy(site: Site, classes: tuple[str, ...]) -> float:
    """The divergence of the site's distribution of classes from the uniform one, in nats: 0 to the logarithm of their number."""
    counts = site.holds(classes)
    if not counts.any():
        return float(np.log(len(classes)))
    share = counts[counts > 0] / counts.sum()
    return max(0.0, float(np.sum(share * np.log(share * len(classes)))))
