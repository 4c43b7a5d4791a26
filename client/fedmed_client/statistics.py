"""A recipe's statistics at a site: sums over its training patients, withheld where few are in them, or with noise."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedmed_client import pulse
from fedmed_client.data.cohort import Case, by_patient
from fedmed_client.workbench import Bench
from fedmed_common import entropy
from fedmed_common.params import Parameters
from fedmed_common.site_config import UNLABELLED
from fedmed_strategies.layers import last_layer, sizes_of
from fedmed_strategies.statistics.base import Patient, Statistic

_AT_ONCE = 8


def summed(
    statistic: Statistic,
    bench: Bench,
    cases: Sequence[Case],
    least_patients: int,
    reserve: Callable[[], None],
    sharing: int = 1,
) -> Parameters:
    """The sums over the patients of the cases, as they may leave, in the order that the server expects.

    With noise, ``reserve`` is called before it is drawn; ``sharing``: so many sites add their part of it to a secure sum. The
    model on the bench is the order's, in evaluation mode.
    """
    sizes = sizes_of(bench.experiment, bench.model)
    declared = statistic.zeros(sizes)
    total = {name: array.astype(np.float64) for name, array in (declared | statistic.aside(sizes)).items()}
    deviation = statistic.noise_multiplier * statistic.sensitivity(sizes) / math.sqrt(sharing)
    spacing = entropy.grid(deviation)
    for patient in patients_of(cases, bench):
        part = statistic.of_patient(patient, sizes)
        for name in total:
            total[name] += np.trunc(part[name] / spacing) * spacing if spacing else part[name]
        pulse.beat()
    if statistic.epsilon is None:
        plain = {name: array.astype(np.float32) for name, array in total.items()}
        releasable = statistic.releasable(plain, least_patients)
        return {name: releasable[name] for name in declared}
    reserve()
    return {
        name: (total[name] + entropy.noise(array.size, deviation).numpy().reshape(array.shape)).astype(
            np.float32
        )
        for name, array in declared.items()
    }


def patients_of(cases: Sequence[Case], bench: Bench | None = None) -> Iterator[Patient]:
    """The patients of the cases as statistics see them."""
    for own in by_patient(cases).values():
        yield Patient(
            cases=own,
            annotated=np.any([case.annotated for case in own], axis=0),
            present=np.any([case.present for case in own], axis=0),
            probabilities=lambda case: _probabilities(_needed(bench), case),
            features=lambda case: _features(_needed(bench), case),
        )


def _needed(bench: Bench | None) -> Bench:
    assert bench is not None  # noqa: S101
    return bench


def _probabilities(bench: Bench, case: Any) -> NDArray[np.float32]:
    probabilities: NDArray[np.float32] = bench.task.probabilities(  # type: ignore[attr-defined]
        bench.model, case.image, bench.device
    )
    return probabilities


def _features(bench: Bench, case: Any) -> Iterator[tuple[NDArray[np.float32], NDArray[np.int64]]]:
    """Patch by patch, without overlap: what the last layer sees of each labelled voxel ``(D, N)``, and its label ``(N,)``."""
    plan = bench.experiment.plan
    layer = last_layer(bench.model, bench.layers)
    seen: list[torch.Tensor] = []
    handle = layer.module.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    known = np.concatenate([[True], case.annotated])
    try:
        for images, labels in _patches(case, (*plan.patch, 1)):
            batch = torch.from_numpy(images[..., 0] if plan.dimensions == 2 else images).to(bench.device)
            with torch.inference_mode():
                bench.model(batch)
            features = seen.pop().float().cpu().numpy()
            seen.clear()
            flat = np.moveaxis(features, 1, 0).reshape(features.shape[1], -1)
            label = labels.reshape(-1).astype(np.int64)
            kept = label != UNLABELLED
            label = label[kept]
            yield flat[:, kept], np.where(known[np.minimum(label, len(known) - 1)], label, 0)
    finally:
        handle.remove()


def _patches(case: Case, size: Sequence[int]) -> Iterator[tuple[NDArray[np.float32], NDArray[np.uint8]]]:
    """Some patches at a time that cover the case once: images ``(B, C, *patch)`` and labels ``(B, *patch)``, unlabelled
    outside."""
    patch, shape = tuple(size[:3]), case.label.shape
    corners = list(product(*(range(0, size, step) for size, step in zip(shape, patch, strict=True))))
    for first in range(0, len(corners), _AT_ONCE):
        some = corners[first : first + _AT_ONCE]
        images = np.zeros((len(some), case.image.shape[0], *patch), np.float32)
        labels = np.full((len(some), *patch), UNLABELLED, np.uint8)
        for place, corner in enumerate(some):
            source = tuple(
                slice(start, min(start + step, size))
                for start, step, size in zip(corner, patch, shape, strict=True)
            )
            target = tuple(slice(0, part.stop - part.start) for part in source)
            images[place][(slice(None), *target)] = case.image[(slice(None), *source)]
            labels[place][target] = case.label[source]
        yield images, labels
