"""Samples for training a classifier: a patient, one of the patient's cases, for a 2D network one of its slices.

As with patches, each sample takes the same number of random draws whatever it becomes, and drawing comes before cutting.
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
from fedmed_client.data.sampler import Batch, leave_out, missing_channels, samples_of_patient
from fedmed_client.data.transforms import build_augmentation
from fedmed_common.config import Experiment
from fedmed_common.errors import DataError
from fedmed_strategies.pieces import Sampler

_DRAWS = 5


@dataclass(frozen=True, slots=True)
class Pick:
    """One sample to copy: which case, which of its samples, a seed to augment by."""

    case: int
    sample: int
    seed: int


class ClassSampler:
    """Batches of whole images, or of slices, out of a cohort's cases.

    With probability ``data.foreground_share`` a draw asks for a class, evenly among those that some patient shows, then for one
    of the patients who show it, for a case of theirs and a sample of the case that do: so a rare class is seen as often as a
    common one. Otherwise patient, case and sample are drawn evenly; a patient with many studies weighs no more than one with
    few.
    """

    def __init__(self, cases: Sequence[Case], experiment: Experiment) -> None:
        """Raises DataError where there are no cases."""
        if not cases:
            raise DataError("there is no case to draw samples from: no patient is in this split")
        self._cases = tuple(cases)
        self._targets = [case.label[:, 0, :].T.astype(np.int64) for case in cases]
        by_patient: dict[int, list[int]] = {}
        for number, case in enumerate(cases):
            by_patient.setdefault(case.patient, []).append(number)
        self._patients = list(by_patient.values())
        self._shown = [
            np.flatnonzero(targets.any(axis=0) & np.array(case.annotated, bool)).tolist()
            for targets, case in zip(self._targets, cases, strict=True)
        ]
        self._size = experiment.train.batch_size
        self._size_of_patient = samples_of_patient(experiment)
        self._modalities = bool(experiment.data.modalities)
        self._modality_dropout = experiment.data.modality_dropout
        self._share = experiment.data.foreground_share
        self._patch = experiment.data.patch
        self._flat = experiment.task.dimensions == 2
        self._augment = build_augmentation(experiment.data.augmentation, experiment.data.patch)
        self._annotated = np.array([case.annotated for case in cases], dtype=bool)
        self._everyone = tuple(range(len(self._patients)))
        self._chances: Chances | None = None

    def weighed(self, sampler: Sampler, down: Mapping[str, NDArray[Any]]) -> ClassSampler:
        """One that draws patients by a recipe's chances where no class is asked for."""
        other = copy.copy(self)
        other._chances = chances_of(sampler, self._patients, self._cases, down)
        return other

    @property
    def patients(self) -> int:
        """How many there are to draw from."""
        return len(self._patients)

    def batch(self, rng: np.random.Generator) -> Batch:
        """Image ``(B, C, *patch)`` float32, target 0 or 1 ``(B, K)`` int64, annotated ``(B, K)`` bool."""
        return self.cut(self.draw(rng))

    def of_patient(self, number: int, rng: np.random.Generator) -> Batch:
        """``privacy.samples`` samples, all of one patient, who is ``number`` among ``patients``."""
        return self.cut(self.draw_of(number, rng))

    def draw_of(self, number: int, rng: np.random.Generator) -> list[Pick]:
        """Choose the samples of :meth:`of_patient`; reads no image."""
        return self._draw(rng, self._size_of_patient, (number,))

    def draw(self, rng: np.random.Generator) -> list[Pick]:
        """Choose ``train.batch_size`` samples; reads no image."""
        return self._draw(rng, self._size, self._everyone)

    def _draw(self, rng: np.random.Generator, count: int, among: tuple[int, ...]) -> list[Pick]:
        owners = self._owners(among)
        seeds = rng.integers(2**32, size=count)
        return [
            self._pick(among, owners, draws, int(seed))
            for draws, seed in zip(rng.random((count, _DRAWS)).tolist(), seeds, strict=True)
        ]

    def cut(self, picks: Sequence[Pick]) -> Batch:
        """Copy the samples out of their cases and augment them."""
        cases = [self._cases[pick.case] for pick in picks]
        image = np.stack(
            [
                case.image[..., pick.sample] if self._flat else case.image
                for case, pick in zip(cases, picks, strict=True)
            ]
        )
        missing = missing_channels(image) if self._modalities else None
        if self._augment is not None:
            nothing = np.zeros(self._patch, np.uint8)
            for place, (case, pick) in enumerate(zip(cases, picks, strict=True)):
                self._augment(image[place], nothing, pick.seed, oriented=case.oriented)
        if missing is not None:
            for place, pick in enumerate(picks):
                leave_out(image[place], missing[place], self._modality_dropout, pick.seed)
        target = np.stack([self._targets[pick.case][pick.sample] for pick in picks])
        annotated = self._annotated[[pick.case for pick in picks]]
        return torch.from_numpy(image), torch.from_numpy(target), torch.from_numpy(annotated)

    def _owners(self, among: tuple[int, ...]) -> list[tuple[int, list[int]]]:
        """Each class that somebody shows, with those who do, in the order of the experiment's list."""
        owners: dict[int, list[int]] = {}
        for patient in among:
            for klass in sorted({k for case in self._patients[patient] for k in self._shown[case]}):
                owners.setdefault(klass, []).append(patient)
        return sorted(owners.items())

    def _pick(
        self, among: tuple[int, ...], owners: list[tuple[int, list[int]]], draws: list[float], seed: int
    ) -> Pick:
        asks, klass, patient, case, sample = draws
        if asks < self._share and owners:
            wanted, shown_by = _one_of(owners, klass)
            cases = [n for n in self._patients[_one_of(shown_by, patient)] if wanted in self._shown[n]]
            number = _one_of(cases, case)
            samples = np.flatnonzero(self._targets[number][:, wanted]).tolist()
            return Pick(number, _one_of(samples, sample), seed)
        chances = self._chances if among is self._everyone else None
        who = _one_of(among, patient) if chances is None else chances.patient(patient)
        number = _one_of(self._patients[who], case)
        return Pick(number, int(sample * len(self._targets[number])), seed)


def _one_of(items: Sequence[Any], share: float) -> Any:
    """The item at a share in [0, 1) of a sequence."""
    return items[int(share * len(items))]
