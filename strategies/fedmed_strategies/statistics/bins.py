"""Histograms of patients: where a value is counted, and what of one may leave without noise."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Bins:
    """``count`` bins around centres that lie evenly from ``first`` to ``last``, or evenly in their logarithms.

    A value beyond them counts with the nearest.
    """

    first: float
    last: float
    count: int
    logarithmic: bool = False

    @property
    def centres(self) -> Numbers:
        """``(B,)``, in the values' unit."""
        if self.logarithmic:
            return np.geomspace(self.first, self.last, self.count)
        return np.linspace(self.first, self.last, self.count)

    def places(self, values: Numbers) -> NDArray[np.intp]:
        """The bin of each value."""
        first, last = self.first, self.last
        if self.logarithmic:
            values, first, last = np.log(np.maximum(values, self.first)), np.log(first), np.log(last)
        shares = (np.asarray(values, np.float64) - first) / (last - first)
        return np.rint(np.clip(shares, 0.0, 1.0) * (self.count - 1)).astype(np.intp)

    def ones(self, values: Numbers) -> Numbers:
        """``(*shape, B)``: a one for each value ``shape`` in its bin."""
        return np.asarray(np.eye(self.count)[self.places(values)])


def grouped(counts: Numbers, least_patients: int) -> Numbers:
    """Counts of patients by bin ``(..., B)`` as groups of neighbours of at least ``least_patients`` each, in the mean bin of
    each.

    A row of fewer patients becomes zeros; sums of rows stay as they are otherwise. This is microaggregation along one axis
    (Domingo-Ferrer and Mateo-Sanz 2002, 'Practical data-oriented microaggregation for statistical disclosure control', IEEE TKDE
    14, section 2), with groups that end where a bin does.
    """
    rows = np.asarray(counts, np.float64).reshape(-1, np.shape(counts)[-1])
    told = np.zeros_like(rows)
    for row, out in zip(rows, told, strict=True):
        begins, inside = [0], 0.0
        for place, count in enumerate(row, start=1):
            inside += count
            if count and inside >= least_patients:
                begins, inside = [*begins, place], 0.0
        for begin, end in pairwise([*begins[:-1], len(row)]):
            of_group = row[begin:end]
            out[begin + round(np.average(np.arange(end - begin), weights=of_group))] = of_group.sum()
    return told.reshape(np.shape(counts))


def to_seen(amounts: Numbers, seen: Numbers, least_patients: int) -> Numbers:
    """Amounts by bin ``(..., B)``; those of bins that fewer than ``least_patients`` patients have ``seen`` are counted with the
    nearest that as many have, and left out where no bin has."""
    flat = np.asarray(amounts, np.float64).reshape(-1, np.shape(amounts)[-1])
    told = np.zeros_like(flat)
    for row, count, out in zip(flat, np.reshape(seen, flat.shape), told, strict=True):
        kept = np.flatnonzero(count >= least_patients)
        if kept.size:
            nearest = kept[np.abs(np.arange(len(row))[:, None] - kept[None]).argmin(axis=1)]
            np.add.at(out, nearest, row)
    return told.reshape(np.shape(amounts))
