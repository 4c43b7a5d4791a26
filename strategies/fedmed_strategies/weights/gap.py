"""FedDG-GA: sites on which the global model is much worse than their own count more in the next round."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from fedmed_strategies.pieces import Arrays, Done, Left, Memory, SiteHalf, Work
from fedmed_strategies.weights.reported import Carried, normalised


class Gap(Carried):
    """p_k <- clip(p_k + d_t gap_k / max |gap|, 0, 1), over their sum; d_t falls linearly from ``step`` to 0 over the run.

    A site's gap is the loss of the new global model minus that of its own last one, on the same of its training patients. It is
    known when the site has been sent the new model, so that it changes the weights of the round after.
    """

    name = "gap"
    source = "Zhang et al. 2023, 'Federated domain generalization with generalization adjustment', CVPR, equations 8 to 10"
    step: Annotated[float, Field(ge=0.0, le=1.0)] = 0.2 / 3
    measures = True
    scalars: ClassVar[Mapping[str, tuple[float, float]]] = {"gap": (-1e9, 1e9)}

    def at_site(self, work: Work) -> SiteHalf:
        """Measures the gap."""
        return _Site(work)

    def settle(self, done: Done) -> tuple[Arrays, Memory]:
        """The weights of the next round."""
        shares = self.shares(done.scene, done.memory)
        gaps = {answer.site.name: answer.scalars["gap"] for answer in done.answers}
        widest = max((abs(gap) for gap in gaps.values()), default=0.0)
        if widest > 0:
            size = self.step * (1 - done.scene.round / done.scene.rounds)
            raised = {
                name: min(1.0, max(0.0, share + size * gaps.get(name, 0.0) / widest))
                for name, share in shares.items()
            }
            shares = normalised(raised) or shares
        return done.parameters, self.kept(shares)


class _Site(SiteHalf):
    def __init__(self, work: Work) -> None:
        self._work, self._gap = work, 0.0

    def begin(self) -> None:
        before = self._work.memory.get("gap/loss")
        if before is not None:
            self._gap = _loss(self._work) - float(before)

    def finish(self, delta: Arrays) -> Left:
        own_loss = np.array(_loss(self._work), np.float32)
        return Left(scalars={"gap": self._gap}, memory={"gap/loss": own_loss})


def _loss(work: Work) -> float:
    assert work.measure is not None  # noqa: S101
    return work.measure()
