"""Survival analysis: the loss of a Cox model, and how well its scores order patients."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedmed_common.errors import DataError


def cox_loss(scores_B: Tensor, events_B: Tensor, times_B: Tensor) -> Tensor:
    """The negative log partial likelihood over the number of patients, with or without an event.

    ``sum over patients i with an event of log sum over j with T_j >= T_i of exp(s_j - s_i)``: Cox 1972, 'Regression models and
    life-tables', J. R. Stat. Soc. B 34, with tied times as Breslow 1974 ('Covariance analysis of censored survival data',
    Biometrics 30) has them. ``events_B``: 1 where the event was seen, 0 where the patient was censored.
    """
    at_risk_BB = times_B[None, :] >= times_B[:, None]
    differences_BB = (scores_B[None, :] - scores_B[:, None]).masked_fill(~at_risk_BB, -torch.inf)
    return (events_B * differences_BB.logsumexp(1)).sum() / len(scores_B)


def concordance(
    scores_N: NDArray[np.floating], events_N: NDArray[np.floating], times_N: NDArray[np.floating]
) -> float:
    """Harrell's C-index: of the pairs whose order is known, the share in which the patient with the higher score was first.

    The order of two patients is known where the one with the shorter time had the event, and at equal times where one of them had
    it and the other was censored, who lived longer. Equal scores count one half. Harrell et al. 1996, 'Multivariable prognostic
    models', Stat. Med. 15.

    Raises:
        DataError: no pair's order is known, or a score is not finite.
    """
    if not np.isfinite(scores_N).all():
        raise DataError("a score is not finite: the training diverged")
    happened, times = np.asarray(events_N, bool), np.asarray(times_N)
    later = (times[None, :] > times[:, None]) | ((times[None, :] == times[:, None]) & ~happened[None, :])
    known = happened[:, None] & later
    if not known.any():
        raise DataError("of no two patients is it known who had the event first")
    first, second = scores_N[:, None], scores_N[None, :]
    return float((known & (first > second)).sum() + 0.5 * (known & (first == second)).sum()) / int(
        known.sum()
    )
