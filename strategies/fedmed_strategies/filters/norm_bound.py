"""Norm bound: no update is longer than a bound."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from fedmed_common.fields import Positive
from fedmed_common.params import is_statistic, norm
from fedmed_strategies.combining import Filter, Weighed
from fedmed_strategies.pieces import Arrays


class NormBound(Filter):
    """delta_k min(1, M / |delta_k|). Running statistics have no length and stay as they are.

    It needs no update but one at a time, so that sites could do it themselves under secure aggregation.
    """

    name = "norm_bound"
    source = "Sun et al. 2019, 'Can you really backdoor federated learning?', section 4.3"
    maximum: Positive = 1.0

    def keep(self, updates: Sequence[Weighed]) -> list[Weighed]:
        """All, shortened."""
        return [replace(update, delta=bounded(update.delta, self.maximum)[0]) for update in updates]


def bounded(delta: Arrays, maximum: float) -> tuple[Arrays, float]:
    """The update, ``maximum`` long at most, and how long it was."""
    length = norm({name: array for name, array in delta.items() if not is_statistic(name)})
    if length <= maximum:
        return delta, length
    scale = np.float32(maximum / length)
    return {name: array if is_statistic(name) else array * scale for name, array in delta.items()}, length
