"""A sampler that draws patients with rare classes more often."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fedmed_common.fields import Fraction
from fedmed_strategies.pieces import Sampler, StatisticPiece
from fedmed_strategies.statistics.counts import Counts, counts_of


class Rare(Sampler):
    """A patient's chance is that of the rarest class that the patient shows: max_c N_c^-temper; patches centre likewise.

    N_c counts the training patients who show class c: of all sites, or of the site alone. A patient who shows no class has the
    least chance of all. ``temper`` 0 draws evenly, 1 draws each class as often as any other. Not with [privacy], whose accounting
    needs equal chances.
    """

    name = "rare"
    source = (
        "Gupta et al. 2019, 'LVIS', CVPR, appendix B (repeat factor sampling, of patients instead of images)"
    )
    temper: Fraction = 0.5
    centres: Fraction = 0.5
    counts: Literal["all", "site"] = "all"

    @property
    def statistics(self) -> tuple[StatisticPiece, ...]:
        """Counts of everyone's patients, unless its own are enough."""
        return (Counts(),) if self.counts == "all" else ()

    def patient_weights(
        self, shows: NDArray[np.bool_], down: Mapping[str, NDArray[Any]]
    ) -> NDArray[np.float64]:
        """Relative chances of patients ``(P,)``."""
        rarity = np.maximum(self._counts(shows, down), 1.0) ** -self.temper
        shown_somewhere = shows.any(axis=0)
        weights = np.where(shows, rarity, 0.0).max(axis=1, initial=0.0)
        least = rarity[shown_somewhere].min(initial=1.0)
        return np.asarray(np.maximum(weights, least))

    def class_weights(
        self, shows: NDArray[np.bool_], down: Mapping[str, NDArray[Any]]
    ) -> NDArray[np.float64]:
        """Relative chances of the classes ``(K,)``."""
        return np.asarray(np.maximum(self._counts(shows, down), 1.0) ** -self.centres)

    def _counts(self, shows: NDArray[np.bool_], down: Mapping[str, NDArray[Any]]) -> NDArray[np.float64]:
        return counts_of(down) if self.counts == "all" else shows.sum(axis=0).astype(np.float64)
