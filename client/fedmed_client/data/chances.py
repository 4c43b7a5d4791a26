"""Unequal chances of patients and classes to be drawn, as a recipe's sampler has them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedmed_client.data.cohort import Case
from fedmed_strategies.pieces import Sampler

_MOST = 20.0
"""How many times more often than another a patient is drawn at most, whatever the server says is rare."""


@dataclass(frozen=True, slots=True)
class Chances:
    """``patients``: cumulative chances ``(P,)``, the last 1; ``classes``: relative ones ``(K,)``."""

    patients: NDArray[np.float64]
    classes: NDArray[np.float64]

    def patient(self, draw: float) -> int:
        """The patient at a share in [0, 1) of all chances."""
        return min(int(np.searchsorted(self.patients, draw, side="right")), len(self.patients) - 1)

    def klass(self, draw: float, shown: Sequence[int]) -> int:
        """The place among the shown classes at a share in [0, 1) of their chances."""
        edges = np.cumsum(self.classes[list(shown)])
        return min(int(np.searchsorted(edges, draw * edges[-1], side="right")), len(edges) - 1)


def chances_of(
    sampler: Sampler,
    patients: Sequence[Sequence[int]],
    cases: Sequence[Case],
    down: Mapping[str, NDArray[Any]],
) -> Chances:
    """The chances of the patients, each a list of places in ``cases``. ``down``: what the server sent."""
    shows = np.array(
        [np.any([np.array(cases[n].present) & cases[n].annotated for n in own], axis=0) for own in patients],
        bool,
    )
    weights = sampler.patient_weights(shows, down)
    edges = np.cumsum(np.maximum(weights, weights.max() / _MOST))
    return Chances(patients=edges / edges[-1], classes=sampler.class_weights(shows, down))
