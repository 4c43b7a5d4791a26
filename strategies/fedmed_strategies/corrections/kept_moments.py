"""The inner half of DiLoCo: a site's optimizer goes on from round to round."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fedmed_strategies.pieces import Arrays, Correction, Left, Memory, SiteHalf, Work, own, under

if TYPE_CHECKING:
    from torch.optim import Optimizer


class KeptMoments(Correction):
    """A site's optimizer begins each round with its state of the site's last one, in the place of none.

    The state, Adam's two moments and its count of steps, or the momentum of SGD, stays at the site: twice the trained parameters,
    or once. The rate is the round's, and the parameters are the global model's."""

    name = "kept_moments"
    source = (
        "Douillard et al. 2023, 'DiLoCo: distributed low-communication training of language models', arXiv 2311.08105, "
        "algorithm 1"
    )

    def at_site(self, work: Work) -> SiteHalf:
        """Hands the state on."""
        return _Site(work)


class _Site(SiteHalf):
    def __init__(self, work: Work) -> None:
        self._work = work
        self._optimizer: Optimizer | None = None

    def take(self, optimizer: Optimizer) -> None:
        import torch

        self._optimizer = optimizer
        for name, parameter in self._work.parameters.items():
            kept = own(self._work.memory, f"{KeptMoments.name}/{name}")
            if kept:
                optimizer.state[parameter] = {
                    key: torch.from_numpy(np.array(array)).to("cpu" if array.ndim == 0 else parameter.device)
                    for key, array in kept.items()
                }

    def finish(self, delta: Arrays) -> Left:
        assert self._optimizer is not None  # noqa: S101
        memory: Memory = {}
        for name, parameter in self._work.parameters.items():
            state = self._optimizer.state.get(parameter, {})
            arrays = {
                key: value.detach().cpu().numpy().copy() for key, value in state.items() if value is not None
            }
            memory |= under(f"{KeptMoments.name}/{name}", arrays)
        return Left(memory=memory)
