"""Layers that never leave the site: its norms, their statistics, or its head."""

from __future__ import annotations

from fedmed_common.fields import Fraction
from fedmed_common.params import is_statistic
from fedmed_strategies.pieces import Layers, Personal, SiteHalf, Work


class OwnNorms(Personal):
    """Every site keeps its normalisation layers, parameters and running statistics."""

    name = "own_norms"
    source = "Li et al. 2021, 'FedBN: federated learning on non-IID features via local batch normalization', ICLR, section 3.2"

    def keeps(self, layers: Layers) -> frozenset[str]:
        """The norms' arrays."""
        return layers.norms


class OwnStatistics(Personal):
    """Every site keeps the running statistics of its batch norms; their parameters are shared."""

    name = "own_statistics"
    source = "Andreux et al. 2020, 'Siloed federated learning for multi-centric histopathology datasets', DART, section 3"

    def keeps(self, layers: Layers) -> frozenset[str]:
        """The statistics."""
        return frozenset(name for name in layers.trained if is_statistic(name))


class OwnHead(Personal):
    """Every site keeps the layers that depend on the classes. A site cannot predict a class that it has never seen."""

    name = "own_head"
    source = "Arivazhagan et al. 2019, 'Federated learning with personalization layers', section 3"

    def keeps(self, layers: Layers) -> frozenset[str]:
        """The head's arrays."""
        return layers.head


class Represented(OwnHead):
    """Every site keeps its head, and trains it before the body, each while the other stands still.

    ``head_share``: of a round's steps, those that train the head.
    """

    name = "represented"
    source = "Collins et al. 2021, 'Exploiting shared representations for personalized federated learning', ICML, algorithm 1"
    head_share: Fraction = 0.5

    def at_site(self, work: Work) -> SiteHalf:
        """Holds back the gradients of what stands still."""
        return _Turns(work, self.head_share)


class _Turns(SiteHalf):
    def __init__(self, work: Work, head_share: float) -> None:
        self._work, self._last = work, round(head_share * work.steps)

    def gradients(self, step: int) -> None:
        for name, parameter in self._work.parameters.items():
            if (name in self._work.layers.head) != (step <= self._last):
                parameter.grad = None
