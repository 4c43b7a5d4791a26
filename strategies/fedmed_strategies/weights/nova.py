"""FedNova: each site's update counts per step, so that sites that take more steps do not pull the model to their own optimum."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from fedmed_strategies.combining import Weigher, Weights
from fedmed_strategies.pieces import Answer, Arrays, Left, Memory, Scene, SiteHalf, Work


class Nova(Weights):
    """The step is tau sum_k p_k delta_k / |a_k|, tau = sum_k p_k |a_k|, p_k by patients.

    |a_k| is the number of a site's steps, with momentum rho of plain SGD the sum of (1 - rho^(steps - i + 1)) / (1 - rho).
    """

    name = "nova"
    source = (
        "Wang et al. 2020, 'Tackling the objective inconsistency problem in heterogeneous federated optimization', "
        "NeurIPS, section 4"
    )
    scalars: ClassVar[Mapping[str, tuple[float, float]]] = {"effective_steps": (1e-9, 1e12)}

    def at_site(self, work: Work) -> SiteHalf:
        """Says |a_k|."""
        return _Site(work)

    def begin(self, scene: Scene, memory: Memory) -> Weigher:
        """The weigher of one round."""
        return _Weigher()


class _Weigher:
    def __init__(self) -> None:
        self._patients, self._steps = 0.0, 0.0

    def weigh(self, answer: Answer) -> float:
        steps = answer.scalars["effective_steps"]
        self._patients += answer.site.patients
        self._steps += answer.site.patients * steps
        return answer.site.patients / steps

    def total(self) -> float:
        return self._patients**2 / self._steps


class _Site(SiteHalf):
    def __init__(self, work: Work) -> None:
        self._work = work

    def finish(self, delta: Arrays) -> Left:
        return Left(scalars={"effective_steps": effective_steps(self._work.steps, self._work.momentum)})


def effective_steps(steps: int, momentum: float) -> float:
    """|a|: by how many plain steps' gradients the parameters moved; momentum as torch's SGD has it."""
    return sum((1 - momentum ** (steps - step)) / (1 - momentum) for step in range(steps))
