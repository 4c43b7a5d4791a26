"""What all statistics have in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedmed_common import privacy
from fedmed_common.privacy import Spent
from fedmed_common.tasks import Case
from fedmed_strategies.pieces import Arrays, Memory, StatisticPiece, under

MOST_EPSILON = 10.0
"""With more, noise hides nothing, and small counts would leave as they are."""

Pixels = Iterator[tuple[NDArray[np.float32], NDArray[np.int64]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Patient:
    """One patient of a site as a statistic sees it. Nothing here leaves.

    ``annotated``, ``present``: ``(K,)`` over the cases. ``probabilities(case)``: ``(C, X, Y, Z)`` of the order's model.
    ``features(case)``: part by part what the head's last layer sees, ``(D, N)``, and the label ``(N,)`` of the same voxels, in
    which a class that the site does not annotate is background.
    """

    cases: Sequence[Case]
    annotated: NDArray[np.bool_]
    present: NDArray[np.bool_]
    probabilities: Callable[[Case], NDArray[np.float32]]
    features: Callable[[Case], Pixels]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """What a statistic's shapes depend on: classes, channels of logits, of images, and of what the head's last layer sees."""

    classes: int
    outputs: int
    channels: int
    features: int = 0


class Statistic(StatisticPiece):
    """A sum over patients. ``epsilon``: add noise, so that what a site says of one patient is (epsilon, delta)-private.

    Neighbours are a site's patients with and without one of them. The noise is Gaussian, of standard deviation sigma times
    :meth:`sensitivity`, sigma the least that keeps epsilon; the site charges it to its ledger before it is drawn. With
    ``[privacy]`` a statistic without noise is refused."""

    epsilon: Annotated[float, Field(gt=0.0, le=MOST_EPSILON)] | None = None
    delta: Annotated[float, Field(gt=0.0, le=0.1)] = 1e-5
    with_model: ClassVar[bool] = False
    """Whether it looks at what the order's model makes of patients."""

    @abstractmethod
    def zeros(self, sizes: Sizes) -> Arrays:
        """Its arrays without any patient, by name: what leaves."""

    def aside(self, sizes: Sizes) -> Arrays:
        """Further sums, likewise, that never leave: only what may be said of the others depends on them."""
        return {}

    @abstractmethod
    def of_patient(self, patient: Patient, sizes: Sizes) -> Arrays:
        """What one patient adds to all of them. Over those that leave, its Euclidean length is at most :meth:`sensitivity`."""

    @abstractmethod
    def sensitivity(self, sizes: Sizes) -> float:
        """The longest that any patient's part can be."""

    @property
    def noise_multiplier(self) -> float:
        """sigma; 0 without noise."""
        return privacy.calibrate(self.epsilon, self.delta, 1.0, 1) if self.epsilon else 0.0

    @property
    def spent(self) -> tuple[Spent, ...]:
        """What one release costs each patient; nothing where there is no noise, as then there is no promise."""
        sigma = self.noise_multiplier
        return (Spent(noise_multiplier=sigma, sampling_rate=1.0, steps=1),) if sigma else ()

    def releasable(self, sums: Arrays, least_patients: int) -> Arrays:
        """What may leave of sums without noise, where what fewer than ``least_patients`` are in may not; of those aside, nothing
        does, whatever this gives."""
        return sums

    def kept(self, sums: Arrays) -> Memory:
        """What the server keeps of the sum over sites, and sends to all of them with each order."""
        return under(self.name, sums)


def without_few(sums: Arrays, count: str, names: Sequence[str], least_patients: int) -> Arrays:
    """The sums with zeros where the count, along the first axis, is below ``least_patients``; so is the count itself."""
    few = sums[count] < least_patients
    return {
        name: np.where(few.reshape(-1, *[1] * (array.ndim - 1)), np.float32(0), array)
        if name in (count, *names)
        else array
        for name, array in sums.items()
    }


def clipped(values: NDArray[Any], length: float) -> NDArray[Any]:
    """The vectors ``(D, N)``, each ``length`` long at most; what is no number in one is 0."""
    values = np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
    norms = np.linalg.norm(values, axis=0, keepdims=True)
    return np.asarray(values * np.minimum(1.0, length / np.maximum(norms, 1e-12)))
