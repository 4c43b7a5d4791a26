"""FedPIDAvg: sites count by their patients, by how much their loss fell last, and by how large it has been."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from fedmed_strategies.pieces import Arrays, Done, Memory, SiteHalf, Work, own
from fedmed_strategies.weights.reported import Carried, StartLoss, normalised

_MEMORY = 5


class Pid(Carried):
    """p_k = alpha n_k / n + beta c_k / c + gamma m_k / m: c_k the last fall of the site's loss, m_k the sum of its last five.

    The loss is that of the global model on some of the site's training patients, as the site was sent it. A loss that rose has
    fallen by 0. A term whose sum over the sites is 0 is by patients.
    """

    name = "pid"
    source = (
        "Mächler et al. 2023, 'FedPIDAvg: a PID controller inspired aggregation method for federated learning', BrainLes, "
        "equation 2"
    )
    alpha: Annotated[float, Field(ge=0.0)] = 0.45
    beta: Annotated[float, Field(ge=0.0)] = 0.45
    gamma: Annotated[float, Field(ge=0.0)] = 0.1
    measures = True
    scalars: ClassVar[Mapping[str, tuple[float, float]]] = {"global_loss": (0.0, 1e9)}

    def at_site(self, work: Work) -> SiteHalf:
        """Measures the loss."""
        return StartLoss(work, "global_loss")

    def settle(self, done: Done) -> tuple[Arrays, Memory]:
        """The weights of the next round."""
        losses = own(done.memory, f"{self.name}/losses")
        for answer in done.answers:
            before = losses.get(answer.site.name, np.zeros(0))
            losses[answer.site.name] = np.append(before, answer.scalars["global_loss"])[-_MEMORY:]
        patients = normalised({site.name: float(site.patients) for site in done.scene.sites})
        falls = {name: _fall(losses.get(name)) for name in patients}
        sums_of = {name: float(np.sum(losses.get(name, 0.0))) for name in patients}
        terms = (
            (self.alpha, patients),
            (self.beta, normalised(falls) or patients),
            (self.gamma, normalised(sums_of) or patients),
        )
        shares = {name: sum(weight * term[name] for weight, term in terms) for name in patients}
        kept = {f"{self.name}/losses/{name}": values for name, values in losses.items()}
        return done.parameters, {**kept, **self.kept(normalised(shares) or patients)}


def _fall(losses: np.ndarray[tuple[int, ...], np.dtype[np.float32]] | None) -> float:
    return 0.0 if losses is None or len(losses) < 2 else max(0.0, float(losses[-2] - losses[-1]))
