"""Metrics of validation and test patients with noise, for a site that lets none out without.

The Gaussian mechanism on a sum over patients. By class, and by whether a patient shows it, a patient adds one to a count, and to
each metric's sum its value less a half: within 1/2, so that the two tell as much as count and sum with less noise. Who shows a
class in one image and not in another counts as one who shows it. Metrics that are no sum over patients, as an AUROC, or have
no bound, as a distance in mm, are left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from torch import Tensor

from fedmed_common import entropy
from fedmed_common.config import Task
from fedmed_common.metrics import Mean, Metrics, Score

Group = tuple[str, str]
"""A class, and whom its metrics are over."""


def with_noise(
    patients: Sequence[Metrics],
    task: Task,
    permits: Callable[[str], bool],
    noise_multiplier: float,
    normal: Callable[[int], Tensor] = entropy.normal,
) -> Metrics:
    """The permitted metrics of all patients, each mean within 0 and 1, and the number of patients behind it as far as the noise
    lets it be known; none where that is less than one.

    ``patients``: of each, the metrics alone. How many they are is told.
    """
    groups = groups_of(task, permits)
    if not groups:
        return {}
    entries: list[Group | str] = []
    for group, names in groups.items():
        entries += [group, *names]
    deviation = noise_multiplier * sensitivity(groups)
    spacing = entropy.grid(deviation)
    total = np.zeros(len(entries))
    for patient in patients:
        own = added(patient, groups)
        total += [math.trunc(own.get(entry, 0.0) / spacing) * spacing for entry in entries]
    noisy = dict(zip(entries, total + entropy.noise(len(entries), deviation, normal).numpy(), strict=True))
    found: Metrics = {}
    for group, names in groups.items():
        count = min(float(noisy[group]), float(len(patients)))
        if count < 1:
            continue
        for name in names:
            value = min(1.0, max(0.0, 0.5 + float(noisy[name]) / count))
            found[name] = Mean(value * count, count)
    return found


def groups_of(task: Task, permits: Callable[[str], bool]) -> dict[Group, tuple[str, ...]]:
    """The permitted metrics that are sums over patients, by whose they are; those of who shows a class come first."""
    groups: dict[Group, tuple[str, ...]] = {}
    for score in sorted(task.scores, key=lambda score: score.over == "absent"):
        for klass in task.classes if score.by_class else ("",):
            name = _name(score, klass)
            if score.adds_up and permits(name):
                group = klass, score.over
                groups[group] = (*groups.get(group, ()), name)
    return groups


def sensitivity(groups: Mapping[Group, Sequence[str]]) -> float:
    """How long what one patient adds can be: of each class one count, and a half for each metric of the larger side of it."""
    sides: dict[Group, int] = {}
    for (klass, over), names in groups.items():
        side = (klass, "all" if over == "all" else "either")
        sides[side] = max(sides.get(side, 0), len(names))
    return math.sqrt(sum(1 + count / 4 for count in sides.values()))


def added(patient: Metrics, groups: Mapping[Group, Sequence[str]]) -> dict[Group | str, float]:
    """What a patient adds: see the module."""
    added: dict[Group | str, float] = {}
    for (klass, over), names in groups.items():
        shown = (klass, "present") in added
        means = {name: patient[name] for name in names if name in patient and patient[name].weight}
        if not means or (over == "absent" and shown):
            continue
        added[klass, over] = 1.0
        for name, mean in means.items():
            added[name] = min(1.0, max(0.0, mean.value)) - 0.5
    return added


def _name(score: Score, klass: str) -> str:
    return f"{score.name}/{klass}" if klass else score.name
