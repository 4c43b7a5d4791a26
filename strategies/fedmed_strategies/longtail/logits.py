"""Losses that see shifted or scaled logits of some classes: logit adjustment, balanced softmax, FedLC, FedRS.

Only training sees them so; predictions are of the logits as they are. The background has no prior.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedmed_strategies.pieces import Loss, SiteHalf, StatisticPiece, Work
from fedmed_strategies.statistics.counts import Counts, prior

if TYPE_CHECKING:
    from torch import Tensor

    from fedmed_common.tasks.losses import Loss as SampleLoss


class LogitAdjustment(Loss):
    """The loss of z_c + tau max(log pi_c, floor), pi_c the share of training patients who show class c.

    ``prior``: of all sites' patients together, or of the site's own. Shares of patients, never of voxels: those span five orders
    of magnitude, and paint the rare class everywhere. A class that nobody shows has the share of half a patient.
    """

    name = "logit_adjustment"
    source = "Menon et al. 2021, 'Long-tail learning via logit adjustment', ICLR, equation 10"
    tau: Annotated[float, Field(ge=0.0)] = 1.0
    floor: Annotated[float, Field(le=0.0)] = -3.0
    prior: Literal["all", "site"] = "all"

    def looks_at_presence(self) -> bool:
        """Whether the prior is the site's own."""
        return self.prior == "site"

    @property
    def statistics(self) -> tuple[StatisticPiece, ...]:
        """Counts of everyone's patients, unless its own are enough."""
        return (Counts(),) if self.prior == "all" else ()

    def at_site(self, work: Work) -> SiteHalf:
        """Shifts the logits."""
        share = prior(work.down) if self.prior == "all" else _share(work.presence, work.patients)
        return Shifted(work, self.tau * np.maximum(np.log(share), self.floor))


class Calibrated(Loss):
    """The loss of z_c - tau n_kc^(-1/4), n_kc the site's training patients who show class c, at least 1."""

    name = "calibrated"
    source = (
        "Zhang et al. 2022, 'Federated learning with label distribution skew via logits calibration', ICML, equation 7 "
        "(FedLC)"
    )
    uses_presence = True
    tau: Annotated[float, Field(ge=0.0)] = 0.5

    def at_site(self, work: Work) -> SiteHalf:
        """Shifts the logits, the background's by the number of all patients."""
        shift = -self.tau * np.maximum(work.presence, 1.0) ** -0.25
        return Shifted(work, shift, -self.tau * max(work.patients, 1) ** -0.25)


class Restricted(Loss):
    """The loss of alpha z_c where no training patient of the site shows class c, which is annotated there."""

    name = "restricted"
    source = (
        "Li and Zhan 2021, 'FedRS: federated learning with restricted softmax for label distribution non-IID data', KDD, "
        "equation 5"
    )
    uses_presence = True
    alpha: Annotated[float, Field(ge=0.0, le=1.0)] = 0.5

    def at_site(self, work: Work) -> SiteHalf:
        """Scales the logits."""
        vacant = (work.presence == 0) & work.annotated
        return Scaled(work, np.where(vacant, self.alpha, 1.0))


class Shifted(SiteHalf):
    """Adds a number to each class's logit. ``shift``: ``(K,)``."""

    def __init__(self, work: Work, shift: NDArray[np.float64], background: float = 0.0) -> None:
        self._shift = _by_output(work, shift, background)

    def recast(self, loss: SampleLoss) -> SampleLoss:
        """The loss of shifted logits."""
        return lambda logits, target, annotated: loss(logits + along(self._shift, logits), target, annotated)


class Scaled(SiteHalf):
    """Multiplies each class's logit. ``scale``: ``(K,)``."""

    def __init__(self, work: Work, scale: NDArray[np.float64]) -> None:
        self._scale = _by_output(work, scale, 1.0)

    def recast(self, loss: SampleLoss) -> SampleLoss:
        """The loss of scaled logits."""
        return lambda logits, target, annotated: loss(logits * along(self._scale, logits), target, annotated)


def along(values: NDArray[np.float64], logits: Tensor) -> Tensor:
    """The values ``(C,)`` to be combined with logits ``(B, C, *S)``."""
    import torch

    shape = (1, -1, *[1] * (logits.dim() - 2))
    return torch.as_tensor(values, dtype=logits.dtype, device=logits.device).reshape(shape)


def _by_output(work: Work, values: NDArray[np.float64], background: float) -> NDArray[np.float64]:
    return np.concatenate([[background], values]) if work.background else values


def _share(presence: NDArray[np.int64], patients: int) -> NDArray[np.float64]:
    return np.asarray(np.maximum(presence, 0.5) / max(patients, 1))
