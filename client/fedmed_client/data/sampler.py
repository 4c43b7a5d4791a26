"""Patches for training: a patient, one of the patient's cases, a place in it.

Each patch takes the same number of random draws whatever it becomes, and drawing comes before cutting: the same
generator gives the same patches, whoever cuts them and when.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedmed_client.data.chances import Chances, chances_of
from fedmed_client.data.cohort import Case
from fedmed_client.data.transforms import build_augmentation
from fedmed_common.config import Experiment
from fedmed_common.errors import DataError
from fedmed_strategies.pieces import Sampler

Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
Corner = tuple[int, int, int]
_DRAWS = 8


@dataclass(frozen=True, slots=True)
class Pick:
    """One patch to cut: which case, its first voxel (negative where the case is smaller than the patch), a seed to augment by."""

    case: int
    corner: Corner
    seed: int


class PatchSampler:
    """Batches of patches out of a cohort's cases.

    A patient is drawn evenly, then one of the patient's cases; so a patient with many studies weighs no more than one
    with few. With probability ``data.foreground_share`` the patch is centred, as far as the case allows, on a voxel
    of a class drawn evenly among those the case shows; otherwise its place is drawn evenly. A case smaller than the
    patch is set in the middle of zeros, as the sliding window of the evaluation does. With ``task.dimensions`` 2 a
    patch is a part of one slice along z.
    """

    def __init__(self, cases: Sequence[Case], experiment: Experiment) -> None:
        """Raises DataError where there are no cases."""
        if not cases:
            raise DataError("there is no case to draw patches from: no patient is in this split")
        self._cases = tuple(cases)
        self._classes = [[points for points in case.points if len(points)] for case in cases]
        self._shown = [[k for k, points in enumerate(case.points) if len(points)] for case in cases]
        by_patient: dict[int, list[int]] = {}
        for number, case in enumerate(cases):
            by_patient.setdefault(case.patient, []).append(number)
        self._patients = list(by_patient.values())
        self._size = experiment.train.batch_size
        self._size_of_patient = samples_of_patient(experiment)
        self._channels = experiment.data.channels
        self._modalities = bool(experiment.data.modalities)
        self._modality_dropout = experiment.data.modality_dropout
        self._share = experiment.data.foreground_share
        self._patch = (*experiment.data.patch, 1)[:3]
        self._flat = experiment.task.dimensions == 2
        self._augment = build_augmentation(experiment.data.augmentation, experiment.data.patch)
        self._annotated = np.array([case.annotated for case in cases], dtype=bool)
        self._chances: Chances | None = None

    def batch(self, rng: np.random.Generator) -> Batch:
        """Image ``(B, C, *patch)`` float32, label ``(B, *patch)`` int64, annotated ``(B, K)`` bool."""
        return self.cut(self.draw(rng))

    def weighed(self, sampler: Sampler, down: Mapping[str, NDArray[Any]]) -> PatchSampler:
        """One that draws patients, and centres patches, by a recipe's chances."""
        other = copy.copy(self)
        other._chances = chances_of(sampler, self._patients, self._cases, down)
        return other

    @property
    def patients(self) -> int:
        """How many there are to draw from."""
        return len(self._patients)

    def of_patient(self, number: int, rng: np.random.Generator) -> Batch:
        """``privacy.samples`` patches, all of one patient, who is ``number`` among ``patients``."""
        return self.cut(self.draw_of(number, rng))

    def draw_of(self, number: int, rng: np.random.Generator) -> list[Pick]:
        """Choose the patches of :meth:`of_patient`; reads no image."""
        return self._draw(rng, self._size_of_patient, self._patients[number : number + 1])

    def draw(self, rng: np.random.Generator) -> list[Pick]:
        """Choose ``train.batch_size`` patches; reads no image."""
        return self._draw(rng, self._size, self._patients, self._chances)

    def _draw(
        self,
        rng: np.random.Generator,
        count: int,
        patients: Sequence[list[int]],
        chances: Chances | None = None,
    ) -> list[Pick]:
        seeds = rng.integers(2**32, size=count)
        return [
            self._pick(patients, draws, int(seed), chances)
            for draws, seed in zip(rng.random((count, _DRAWS)).tolist(), seeds, strict=True)
        ]

    def cut(self, picks: Sequence[Pick]) -> Batch:
        """Copy the patches out of their cases and augment them."""
        image = np.zeros((len(picks), self._channels, *self._patch), np.float32)
        label = np.zeros((len(picks), *self._patch), np.uint8)
        for place, pick in enumerate(picks):
            case = self._cases[pick.case]
            source, target = _overlap(pick.corner, self._patch, case.label.shape)
            image[place][(slice(None), *target)] = case.image[(slice(None), *source)]
            label[place][target] = case.label[source]
        if self._flat:
            image, label = image[..., 0], label[..., 0]
        missing = missing_channels(image) if self._modalities else None
        if self._augment is not None:
            for place, pick in enumerate(picks):
                self._augment(image[place], label[place], pick.seed, oriented=self._cases[pick.case].oriented)
        if missing is not None:
            for place, pick in enumerate(picks):
                leave_out(image[place], missing[place], self._modality_dropout, pick.seed)
        annotated = self._annotated[[pick.case for pick in picks]]
        return torch.from_numpy(image), torch.from_numpy(label.astype(np.int64)), torch.from_numpy(annotated)

    def _pick(
        self, patients: Sequence[list[int]], draws: list[float], seed: int, chances: Chances | None
    ) -> Pick:
        patient, case, foreground, klass, voxel, *place = draws
        cases = _one_of(patients, patient) if chances is None else patients[chances.patient(patient)]
        number = _one_of(cases, case)
        shape = self._cases[number].label.shape
        spare = [size - patch for size, patch in zip(shape, self._patch, strict=True)]
        if foreground < self._share and self._classes[number]:
            points = self._classes[number]
            of_class = (
                _one_of(points, klass)
                if chances is None
                else points[chances.klass(klass, self._shown[number])]
            )
            centre = _one_of(of_class, voxel).tolist()
            starts = [middle - patch // 2 for middle, patch in zip(centre, self._patch, strict=True)]
        else:
            starts = [int(share * (room + 1)) for share, room in zip(place, spare, strict=True)]
        x, y, z = (
            min(max(start, 0), room) if room >= 0 else -(-room // 2)
            for start, room in zip(starts, spare, strict=True)
        )
        return Pick(number, (x, y, z), seed)


def missing_channels(images: NDArray[np.float32]) -> NDArray[np.bool_]:
    """``(B, C)``: which channels of ``(B, C, *patch)`` are zero everywhere, as those of a missing modality."""
    return np.asarray(~images.reshape(*images.shape[:2], -1).any(axis=2))


def leave_out(image: NDArray[np.float32], missing: NDArray[np.bool_], dropout: float, seed: int) -> None:
    """Zeros, in place, for modalities that are missing, whatever augmentation made of them, and for some that are not: each with
    probability ``dropout``, but for one of them. ``image``: ``(C, *patch)``; ``seed``: the patch's."""
    there = np.flatnonzero(~missing)
    if dropout and len(there) > 1:
        rng = np.random.default_rng([seed, len(missing)])
        left = rng.random(len(there)) < dropout
        left[rng.integers(len(there))] &= not left.all()
        missing = missing.copy()
        missing[there[left]] = True
    image[missing] = 0.0


def samples_of_patient(experiment: Experiment) -> int:
    """How many samples of a patient make the patient's gradient, where each patient has one."""
    settings = experiment.privacy
    return settings.samples if settings and settings.samples else experiment.train.batch_size


def _one_of(items: Any, share: float) -> Any:
    """The item at a share in [0, 1) of a sequence."""
    return items[int(share * len(items))]


def _overlap(
    corner: Corner, patch: Sequence[int], shape: Sequence[int]
) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Where a patch lies in its case, and where that part lies in the patch."""
    source, target = [], []
    for start, length, size in zip(corner, patch, shape, strict=True):
        first, last = max(start, 0), min(start + length, size)
        source.append(slice(first, last))
        target.append(slice(first - start, last - start))
    return tuple(source), tuple(target)
