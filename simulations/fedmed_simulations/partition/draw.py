"""Drawn sites as cohorts."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedmed_client.data.cohort import Cohort, regroup, without_annotation
from fedmed_common.config import Partition
from fedmed_simulations.partition.deal import deal, deal_by_value, values_told
from fedmed_simulations.partition.gaps import Gaps, hide, make_vacant, shortfall
from fedmed_simulations.partition.patients import Homes, Patients, patients_of
from fedmed_simulations.partition.tail import tail_aims

_DEAL, _GAPS = 0x5EED, 0x6A95


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Drawn:
    """What a partition made of a pool.

    ``vacant``, ``unannotated``: ``(S, K)``. ``aims``: how many training patients were to show each class, ``(K,)``; None without
    a long tail. ``told``: what is to be said beside the numbers, in sentences.
    """

    pool: Cohort
    sites: tuple[Cohort, ...]
    vacant: Gaps
    unannotated: Gaps
    aims: NDArray[np.int64] | None
    told: tuple[str, ...]


def draw_sites(
    cohort: Cohort, partition: Partition, seed: int, values: Mapping[int, str] | None = None
) -> Drawn:
    """Deal the patients of each split to sites; a patient keeps the split, and lies in one site.

    even: equal numbers. quantity: shares drawn from Dirichlet(alpha) over sites. dirichlet: such a draw for each
    group of patients with the same rarest class, so that classes are uneven too (Hsu et al., "Measuring the effects
    of non-identical data distribution for federated visual classification", 2019, section 3). presence: such a draw for each
    class, followed as nearly as patients with several classes allow, after a long tail was made of the training patients. column:
    by ``values``, patient number -> value. Every site gets at least one training patient. Gaps come last, and by a draw of their
    own: without them everyone lies where they would lie with them, but for the patients whose class is vacant.

    Raises:
        ConfigError: too few training patients for the sites, or for their gaps.
    """
    patients = patients_of(cohort)
    rng, gaps = np.random.default_rng([seed, _DEAL]), np.random.default_rng([seed, _GAPS])
    if partition.kind == "column":
        homes, groups = deal_by_value(patients, values or {}, partition.sites)
        names = _names(groups)
        told = values_told(groups, names)
    else:
        names = _numbered(partition.sites or 0)
        homes, told = deal(patients, partition, len(names), rng), ()
    homes, vacant = make_vacant(homes, patients, len(names), partition.vacant, gaps)
    dealt = [regroup(cohort, name, _numbers(patients, homes, site)) for site, name in enumerate(names)]
    annotated = np.array([np.any([case.annotated for case in site.cases], axis=0) for site in dealt])
    positives = patients.positives(homes, len(names))
    hidden = hide(positives, annotated, vacant, partition.unannotated, gaps)
    told += shortfall(vacant, partition.vacant, "vacant", names)
    told += shortfall(hidden, partition.unannotated, "unannotated", names)
    return Drawn(
        pool=cohort,
        sites=tuple(
            without_annotation(site, np.flatnonzero(row).tolist())
            for site, row in zip(dealt, hidden, strict=True)
        ),
        vacant=vacant,
        unannotated=hidden,
        aims=_aims(patients, partition),
        told=told,
    )


def _numbers(patients: Patients, homes: Homes, site: int) -> list[int]:
    return [int(number) for number in patients.number[homes == site]]


def _aims(patients: Patients, partition: Partition) -> NDArray[np.int64] | None:
    if partition.imbalance <= 1:
        return None
    return tail_aims(patients.shows[patients.trains], partition.imbalance)


def _numbered(sites: int) -> list[str]:
    width = len(str(sites))
    return [f"drawn-{index + 1:0{width}d}" for index in range(sites)]


def _names(groups: Sequence[tuple[str, ...]]) -> list[str]:
    """A site is called as its value, in the characters that a site's name may have."""
    names: list[str] = []
    for number, group in enumerate(groups, start=1):
        plain = re.sub(r"[^A-Za-z0-9_.]+", "-", "+".join(group)).strip("-_.")[:48]
        name = plain or f"value-{number}"
        names.append(name if name not in names else f"{name}-{number}")
    return names
