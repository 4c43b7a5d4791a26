"""Sites drawn from pooled cases: who gets which patients."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedmed_client.data.cohort import Cohort, regroup
from fedmed_common.config import Partition
from fedmed_common.errors import ConfigError

_SPLITS = ("train", "validation", "test")


def draw_sites(cohort: Cohort, partition: Partition, seed: int) -> list[Cohort]:
    """Deal the patients of each split to ``partition.sites`` sites; a patient keeps its split.

    even: equal numbers. quantity: shares drawn from Dirichlet(alpha) over sites. dirichlet: such a draw for each
    group of patients with the same rarest class, so that classes are uneven too (Hsu et al., "Measuring the effects
    of non-identical data distribution for federated visual classification", 2019, section 3). Every site gets at
    least one training patient.

    Raises:
        ConfigError: fewer training patients than sites.
    """
    if cohort.patients("train") < partition.sites:
        raise ConfigError(
            f"{cohort.patients('train')} training patients cannot make {partition.sites} sites",
            field="simulation.partition.sites",
            fix="ask for fewer sites",
        )
    rng = np.random.default_rng([seed, 0x5EED])
    groups = _groups(cohort, partition)
    shares = {name: _shares(partition, rng) for name in sorted({group for group, _ in groups.values()})}
    dealt: list[list[int]] = [[] for _ in range(partition.sites)]
    for split in _SPLITS:
        for group, share in shares.items():
            members = np.array(
                sorted(p for p, (g, s) in groups.items() if g == group and s == split), dtype=np.int64
            )
            rng.shuffle(members)
            for site, part in enumerate(_deal(members, share)):
                dealt[site].extend(part.tolist())
    _give_everyone_a_trainer(dealt, {p for p, (_, split) in groups.items() if split == "train"})
    width = len(str(partition.sites))
    return [
        regroup(cohort, f"drawn-{index + 1:0{width}d}", sorted(patients))
        for index, patients in enumerate(dealt)
    ]


def _groups(cohort: Cohort, partition: Partition) -> dict[int, tuple[int, str]]:
    """Patient -> (group, split); the group is the patient's rarest class where classes matter, else 0."""
    present: dict[int, NDArray[np.bool_]] = {}
    split: dict[int, str] = {}
    for case in cohort.cases:
        mask = np.array(case.present, dtype=bool)
        present[case.patient] = present[case.patient] | mask if case.patient in present else mask
        split[case.patient] = case.split
    if partition.kind != "dirichlet":
        return {patient: (0, split[patient]) for patient in split}
    frequency = np.sum(list(present.values()), axis=0)
    return {
        patient: (
            int(np.argmin(np.where(mask, frequency, frequency.max() + 1))) + 1 if mask.any() else 0,
            split[patient],
        )
        for patient, mask in present.items()
    }


def _shares(partition: Partition, rng: np.random.Generator) -> NDArray[np.float64]:
    if partition.kind == "even":
        return np.full(partition.sites, 1 / partition.sites)
    return rng.dirichlet(np.full(partition.sites, partition.alpha))


def _deal(members: NDArray[np.int64], shares: NDArray[np.float64]) -> list[NDArray[np.int64]]:
    cuts = np.round(np.cumsum(shares)[:-1] * len(members)).astype(int)
    return np.split(members, cuts)


def _give_everyone_a_trainer(dealt: list[list[int]], trainers: set[int]) -> None:
    for patients in dealt:
        if not trainers.intersection(patients):
            richest = max(dealt, key=lambda other: len(trainers.intersection(other)))
            given = max(trainers.intersection(richest))
            richest.remove(given)
            patients.append(given)
