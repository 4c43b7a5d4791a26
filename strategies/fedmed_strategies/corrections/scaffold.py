"""SCAFFOLD, option II: each step is corrected by how the site's gradients differ from everyone's."""

from __future__ import annotations

import numpy as np

from fedmed_common.params import is_statistic
from fedmed_strategies.pieces import Arrays, Correction, Done, Left, Memory, Scene, SiteHalf, Work, own, under

_CONTROL, _OWN = "scaffold/control", "scaffold/own"


class Scaffold(Correction):
    """y <- y - eta (g(y) - c_k + c); c_k <- c_k - c + (w_t - y) / (steps eta); c <- c + sum_k (change of c_k) / N.

    ``c_k`` stays at the site; its change is a sum. It holds for plain SGD, whose rate is in the formula. Where sites train
    privately, all of it follows from what they release anyway and costs nothing more.
    """

    name = "scaffold"
    source = "Karimireddy et al. 2020, 'SCAFFOLD: stochastic controlled averaging for federated learning', ICML, algorithm 1"
    only_plain_sgd = True

    def sums(self, template: Arrays) -> Arrays:
        """The change of c_k."""
        return under(_CONTROL, _learned(template))

    def down(self, memory: Memory, scene: Scene) -> Arrays:
        """c; nothing in the first round, where it is 0."""
        return under(_CONTROL, own(memory, _CONTROL))

    def at_site(self, work: Work) -> SiteHalf:
        """Corrects each step."""
        return _Site(work)

    def settle(self, done: Done) -> tuple[Arrays, Memory]:
        """The new c."""
        control, change = own(done.memory, _CONTROL), own(done.sums, _CONTROL)
        every = np.float32(len(done.scene.sites))
        return done.parameters, under(
            _CONTROL, {name: control.get(name, np.float32(0)) + change[name] / every for name in change}
        )


class _Site(SiteHalf):
    def __init__(self, work: Work) -> None:
        import torch

        self._work = work
        self._everyone, self._own = own(work.down, _CONTROL), own(work.memory, _OWN)
        self._shift = {
            name: torch.from_numpy(self._everyone.get(name, zero) - self._own.get(name, zero)).to(parameter)
            for name, parameter in work.parameters.items()
            for zero in [np.zeros(tuple(parameter.shape), np.float32)]
            if name in self._everyone or name in self._own
        }

    def gradients(self, step: int) -> None:
        parameters = self._work.parameters
        for name, shift in self._shift.items():
            gradient = parameters[name].grad
            if gradient is not None:
                gradient.add_(shift)

    def finish(self, delta: Arrays) -> Left:
        zero = np.float32(0)
        moved = np.float32(self._work.steps * self._work.rate)
        change = {
            name: -self._everyone.get(name, zero) - array / moved for name, array in _learned(delta).items()
        }
        new = {name: self._own.get(name, zero) + array for name, array in change.items()}
        return Left(sums=under(_CONTROL, change), memory=under(_OWN, new))


def _learned(arrays: Arrays) -> Arrays:
    return {name: array for name, array in arrays.items() if not is_statistic(name)}
