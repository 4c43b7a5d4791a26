"""Weights that no answer changes: by patients, as FedAvg has them, and equal ones."""

from __future__ import annotations

from collections.abc import Callable

from fedmed_strategies.combining import Weigher, Weights
from fedmed_strategies.pieces import Answer, Memory, Scene


class Summed:
    """A weigher whose total is the sum of what it weighed."""

    def __init__(self, of: Callable[[Answer], float]) -> None:
        self._of, self._total = of, 0.0

    def weigh(self, answer: Answer) -> float:
        """The answer's weight."""
        weight = self._of(answer)
        self._total += weight
        return weight

    def total(self) -> float:
        """The sum of the weights."""
        return self._total


class ByPatients(Weights):
    """A site counts as much as it has training patients."""

    name = "by_patients"
    source = (
        "McMahan et al. 2017, 'Communication-efficient learning of deep networks from decentralized data', AISTATS, "
        "algorithm 1"
    )

    def begin(self, scene: Scene, memory: Memory) -> Weigher:
        """The weigher of one round."""
        return Summed(lambda answer: float(answer.site.patients))


class Equal(Weights):
    """Every site counts alike."""

    name = "equal"
    equal = True

    def begin(self, scene: Scene, memory: Memory) -> Weigher:
        """The weigher of one round."""
        return Summed(lambda _answer: 1.0)
