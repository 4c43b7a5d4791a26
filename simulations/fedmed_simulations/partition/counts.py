"""How many patients of each site show what: the numbers behind the picture and the table of a split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from fedmed_client.data.cohort import Cohort
from fedmed_client.data.splits import SPLITS
from fedmed_simulations.partition.draw import Drawn


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Counts:
    """Numbers of patients.

    ``sizes``: ``(S, 3)``, by split. ``shows``: ``(S, K)``, training patients with a class that is annotated there; ``annotated``:
    ``(S, K)``; ``vacant``: ``(S, K)``, those with the class were dealt to others. ``everyone``: ``(K,)``, the training patients
    with each class of the pool, where sites were drawn from one, and else of all sites; ``left_out``: training patients of the
    pool whom no site has. ``aims`` and ``told``: see ``Drawn``.
    """

    sites: tuple[str, ...]
    classes: tuple[str, ...]
    sizes: NDArray[np.int64]
    shows: NDArray[np.int64]
    annotated: NDArray[np.bool_]
    vacant: NDArray[np.bool_]
    everyone: NDArray[np.int64]
    left_out: int
    aims: NDArray[np.int64] | None
    told: tuple[str, ...]

    @classmethod
    def of(cls, cohorts: Sequence[Cohort], drawn: Drawn | None = None) -> Self:
        """Count the sites' cohorts, of the same classes, at least one; ``drawn``: how they came about."""
        classes = cohorts[0].classes
        presence = [cohort.presence() for cohort in cohorts]
        shows = np.array([[counts.get(name, 0) for name in classes] for counts in presence], np.int64)
        sizes = np.array([[cohort.patients(split) for split in SPLITS] for cohort in cohorts], np.int64)
        pooled = drawn.pool.presence() if drawn else {}
        return cls(
            sites=tuple(cohort.site for cohort in cohorts),
            classes=classes,
            sizes=sizes,
            shows=shows,
            annotated=np.array([[name in counts for name in classes] for counts in presence], bool),
            vacant=drawn.vacant if drawn else np.zeros(shows.shape, bool),
            everyone=np.array([pooled.get(name, 0) for name in classes]) if drawn else shows.sum(axis=0),
            left_out=drawn.pool.patients("train") - int(sizes[:, 0].sum()) if drawn else 0,
            aims=drawn.aims if drawn else None,
            told=drawn.told if drawn else (),
        )
