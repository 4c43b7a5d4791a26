"""Which patient goes to which site: one function for each kind of partition. A patient keeps the split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from fedmed_client.data.splits import SPLITS
from fedmed_common.config import Partition
from fedmed_common.errors import ConfigError
from fedmed_simulations.partition.patients import LEFT_OUT, Homes, Patients
from fedmed_simulations.partition.tail import kept_in_tail


def deal(patients: Patients, partition: Partition, sites: int, rng: np.random.Generator) -> Homes:
    """A site for each patient, by any kind but column. Every site gets at least one training patient.

    Raises:
        ConfigError: fewer training patients than sites.
    """
    kept = np.ones(len(patients.number), bool)
    if partition.imbalance > 1:
        trains = np.flatnonzero(patients.trains)
        kept[trains] = kept_in_tail(patients.shows[trains], partition.imbalance, rng)
    there = int((patients.trains & kept).sum())
    if there < sites:
        tail = f", of which the long tail keeps {there}," if not kept.all() else ""
        raise ConfigError(
            f"{int(patients.trains.sum())} training patients{tail} cannot make {sites} sites",
            field="simulation.partition.sites",
            fix="ask for fewer sites",
        )
    if partition.kind == "presence":
        homes = _by_presence(patients, kept, sites, partition.alpha, rng)
    else:
        homes = _by_group(patients, partition, sites, rng)
    _give_everyone_a_trainer(homes, patients, sites)
    return homes


def deal_by_value(
    patients: Patients, values: Mapping[int, str], sites: int | None
) -> tuple[Homes, list[tuple[str, ...]]]:
    """A site for each value, or as many as asked for, of values together; and which values each site has.

    ``values``: patient number -> value. Together go values such that sites have as equal numbers of training patients as whole
    values allow: each in turn, the largest first, to the site that has fewest.

    Raises:
        ConfigError: a site would have no training patient.
    """
    of_patient = np.array([values[int(number)] for number in patients.number])
    trainers = {
        str(value): int((patients.trains & (of_patient == value)).sum()) for value in np.unique(of_patient)
    }
    usable = [value for value, count in trainers.items() if count]
    if sites is None and len(usable) < len(trainers):
        without = [value for value in trainers if value not in usable]
        raise ConfigError(
            f"of the patients with the value {' or '.join(map(repr, without[:3]))} none is a training patient",
            field="simulation.partition.column",
            fix=f"put values together: partition.sites = {len(usable)} or less",
        )
    if sites is not None and sites > len(usable):
        raise ConfigError(
            f"the column has {len(usable)} values with training patients: they cannot make {sites} sites",
            field="simulation.partition.sites",
            fix=f"ask for at most {len(usable)}",
        )
    groups: list[tuple[str, ...]] = (
        [(value,) for value in trainers] if sites is None else _together(trainers, sites)
    )
    homes = np.full(len(of_patient), LEFT_OUT, np.int64)
    for site, group in enumerate(groups):
        homes[np.isin(of_patient, group)] = site
    return homes, groups


def _together(trainers: Mapping[str, int], sites: int) -> list[tuple[str, ...]]:
    groups: list[list[str]] = [[] for _ in range(sites)]
    sizes = [0] * sites
    for value in sorted(trainers, key=lambda value: (-trainers[value], value)):
        smallest = sizes.index(min(sizes))
        groups[smallest].append(value)
        sizes[smallest] += trainers[value]
    return [tuple(sorted(group)) for group in groups]


def _by_group(patients: Patients, partition: Partition, sites: int, rng: np.random.Generator) -> Homes:
    """Each group's patients by shares of its own."""
    groups = _groups(patients, partition)
    shares = {int(group): _shares(partition, sites, rng) for group in np.unique(groups)}
    homes = np.full(len(groups), LEFT_OUT, np.int64)
    for split in SPLITS:
        for group, share in shares.items():
            members = np.flatnonzero((groups == group) & (patients.split == split))
            rng.shuffle(members)
            cuts = np.round(np.cumsum(share)[:-1] * len(members)).astype(int)
            for site, part in enumerate(np.split(members, cuts)):
                homes[part] = site
    return homes


def _groups(patients: Patients, partition: Partition) -> NDArray[np.int64]:
    """The patient's rarest class, from 1, where classes matter; 0 without any."""
    if partition.kind != "dirichlet":
        return np.zeros(len(patients.number), np.int64)
    frequency = patients.shows.sum(axis=0)
    rarest = np.where(patients.shows, frequency, frequency.max(initial=0) + 1).argmin(axis=1)
    return np.where(patients.shows.any(axis=1), rarest + 1, 0)


def _shares(partition: Partition, sites: int, rng: np.random.Generator) -> NDArray[np.float64]:
    if partition.kind == "even":
        return np.full(sites, 1 / sites)
    return rng.dirichlet(np.full(sites, partition.alpha))


def _by_presence(
    patients: Patients, kept: NDArray[np.bool_], sites: int, alpha: float, rng: np.random.Generator
) -> Homes:
    """Each class's patients by Dirichlet weights of its own, also of those who show several.

    Iterative stratification (Sechidis, Tsoumakas and Vlahavas, ECML 2011) with unequal shares: the class that fewest are left of
    first, each patient to the site that still lacks most of it; the patient then counts in the site's other classes too. Who
    shows nothing is a class of its own.
    """
    shows = np.column_stack([patients.shows, ~patients.shows.any(axis=1)])
    weights = rng.dirichlet(np.full(sites, alpha), size=shows.shape[1])
    homes = np.full(len(patients.number), LEFT_OUT, np.int64)
    for split in SPLITS:
        waiting = kept & (patients.split == split)
        wanted = weights * shows[waiting].sum(axis=0)[:, None]
        order = rng.permutation(len(waiting))
        while waiting.any():
            left = shows[waiting].sum(axis=0)
            klass = int(np.where(left > 0, left, len(waiting) + 1).argmin())
            for place in order[waiting[order] & shows[order, klass]]:
                homes[place] = int(wanted[klass].argmax())
                wanted[shows[place], homes[place]] -= 1
            waiting &= ~shows[:, klass]
    return homes


def _give_everyone_a_trainer(homes: Homes, patients: Patients, sites: int) -> None:
    for site in range(sites):
        counts = patients.training(homes, sites)
        if not counts[site]:
            richest = int(counts.argmax())
            homes[np.flatnonzero(patients.trains & (homes == richest))[-1]] = site


def values_told(groups: Sequence[tuple[str, ...]], names: Sequence[str]) -> tuple[str, ...]:
    """Which values a site stands for, where that is not its name."""
    return tuple(
        f"{name}: {', '.join(group)}" for name, group in zip(names, groups, strict=True) if len(group) > 1
    )
