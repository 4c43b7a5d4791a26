"""A sampler that draws patients with rare classes more often."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedmed_common.fields import Fraction
from fedmed_strategies.pieces import Sampler


class Rare(Sampler):
    """A patient's chance is that of the rarest class that the patient shows: max_c n_kc^-temper; patches centre likewise.

    n_kc counts the site's training patients who show class c. A patient who shows no class has the least chance of all.
    ``temper`` 0 draws evenly, 1 draws each class as often as any other. Not with [privacy], whose accounting needs equal chances.
    """

    name = "rare"
    source = (
        "Gupta et al. 2019, 'LVIS', CVPR, appendix B (repeat factor sampling, of patients instead of images)"
    )
    temper: Fraction = 0.5
    centres: Fraction = 0.5

    def patient_weights(self, shows: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Relative chances of patients ``(P,)``."""
        counts = shows.sum(axis=0)
        rarity = np.where(counts > 0, np.maximum(counts, 1.0) ** -self.temper, 0.0)
        weights = np.where(shows, rarity, 0.0).max(axis=1, initial=0.0)
        least = rarity[counts > 0].min(initial=1.0)
        return np.asarray(np.maximum(weights, least))

    def class_weights(self, shows: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Relative chances of the classes ``(K,)``."""
        return np.asarray(np.maximum(shows.sum(axis=0), 1.0) ** -self.centres)
