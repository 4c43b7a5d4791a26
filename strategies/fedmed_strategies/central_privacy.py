"""Differential privacy of whole sites, with noise that the server adds to their mean."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedmed_common import privacy
from fedmed_common.fields import Fraction, Positive
from fedmed_common.params import is_statistic
from fedmed_common.privacy import Spent
from fedmed_strategies.combining import Weighed
from fedmed_strategies.filters.norm_bound import bounded
from fedmed_strategies.pieces import Arrays, Memory, Piece

_ROUNDING = 1 - 1e-6


class CentralPrivacy(Piece):
    """Clips each site's update to C, and adds noise of standard deviation z C max_k p_k to their weighted mean.

    Guarantee: what all rounds release is differentially private for neighbours in which one site's update is 0, by the
    Gaussian mechanism with noise multiplier z, once a round in which the site is drawn. A round that a crash ends between its
    noise and its checkpoint is done again, and counts twice. Assumed: the server and its noise are trusted, and weights do not
    depend on what sites hold. max_k p_k C is by how much one site can move a weighted mean: with equal weights C / n, with
    others more.

    With ``adapts``, C follows the ``quantile`` of the updates' lengths: C <- max(least, C exp(-adapts (b - quantile))), b the
    share of updates no longer than C, with noise of deviation ``noise_of_shares`` / n on it, which is a release by itself.

    ``delta``: at which the epsilon of a run is told."""

    name = "central_privacy"
    source = (
        "McMahan et al. 2018, 'Learning differentially private recurrent language models', ICLR; Andrew et al. 2021, "
        "NeurIPS, section 2.2"
    )
    clipping_norm: Positive = 1.0
    noise_multiplier: Annotated[float, Field(ge=0.0)] = 1.0
    adapts: Annotated[float, Field(ge=0.0, le=10.0)] = 0.0
    quantile: Fraction = 0.5
    least: Positive = 1e-3
    delta: Annotated[float, Field(gt=0.0, le=0.1)] = 1e-5
    noise_of_shares: Annotated[float, Field(ge=0.0)] = 1.0

    def spent(self, rounds: int) -> tuple[Spent, ...]:
        """What so many rounds in which a site took part cost it; none is cheaper for its not being drawn: that is known."""
        if not self.noise_multiplier or not rounds:
            return ()
        own = (Spent(noise_multiplier=self.noise_multiplier, sampling_rate=1.0, steps=rounds),)
        if not self.adapts:
            return own
        if not self.noise_of_shares:
            return ()
        return (*own, Spent(noise_multiplier=self.noise_of_shares, sampling_rate=1.0, steps=rounds))

    def epsilon(self, rounds: int) -> float:
        """The epsilon at ``delta`` of so many rounds in which a site took part; infinite where a release has no noise."""
        if not rounds:
            return 0.0
        spent = self.spent(rounds)
        return privacy.epsilon(spent, self.delta) if spent else math.inf

    def clip_of(self, memory: Memory) -> float:
        """C of the round."""
        kept = memory.get(f"{self.name}/clipping_norm")
        return self.clipping_norm if kept is None else float(kept)

    def clip(self, update: Weighed, length: float) -> tuple[Weighed, bool]:
        """The update, ``length`` long at most, and whether it was no longer."""
        delta, was = bounded(update.delta, length * _ROUNDING)
        return Weighed(delta=delta, weight=update.weight, site=update.site), was <= length

    def noisy(self, mean: Arrays, length: float, largest_share: float) -> Arrays:
        """The mean with noise from the operating system."""
        from fedmed_common import entropy

        deviation = self.noise_multiplier * length * largest_share
        if not deviation:
            return mean
        count = sum(array.size for name, array in mean.items() if not is_statistic(name))
        deviation *= (
            1.0 + self.noise_multiplier * math.sqrt(count) * entropy.FINENESS
        )  # what rounding adds to max_k p_k C
        spacing = entropy.grid(deviation)

        def hidden(array: NDArray[np.float32]) -> NDArray[np.float32]:
            noise = entropy.noise(array.size, deviation).numpy().reshape(array.shape)
            return np.asarray(np.round(array.astype(np.float64) / spacing) * spacing + noise, np.float32)

        return {name: array if is_statistic(name) else hidden(array) for name, array in mean.items()}

    def next_clip(self, length: float, within: Sequence[bool]) -> Memory:
        """C of the next round, after this round's noise was scaled by the one before."""
        from fedmed_common import entropy

        if not self.adapts:
            return {}
        share = (sum(within) + self.noise_of_shares * float(entropy.normal(1)[0])) / len(within)
        moved = length * math.exp(-self.adapts * (share - self.quantile))
        return {f"{self.name}/clipping_norm": np.array(max(self.least, moved))}
