"""Which sampler a task trains with, and what all of them can do."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fedmed_client.data.class_sampler import ClassSampler
from fedmed_client.data.cohort import Case
from fedmed_client.data.sampler import Batch, PatchSampler
from fedmed_common.config import Experiment
from fedmed_strategies.pieces import Sampler as RecipeSampler


class Sampler(Protocol):
    """Draws training samples out of a cohort's cases: the same generator always gives the same ones."""

    @property
    def patients(self) -> int:
        """How many there are to draw from."""

    def weighed(self, sampler: RecipeSampler, down: Mapping[str, NDArray[Any]]) -> Sampler:
        """One that draws by a recipe's chances. ``down``: what the server sent for it."""

    def batch(self, rng: np.random.Generator) -> Batch:
        """``train.batch_size`` samples: image ``(B, C, *patch)``, target as ``tasks.Task`` has it, annotated ``(B, K)``."""

    def draw(self, rng: np.random.Generator) -> list[Any]:
        """Choose the samples of a batch; reads no image."""

    def draw_of(self, number: int, rng: np.random.Generator) -> list[Any]:
        """Choose ``privacy.samples`` samples of one patient, who is ``number`` among ``patients``."""

    def cut(self, picks: Sequence[Any]) -> Batch:
        """The samples that were chosen, or a part of them; may be called in several threads at once."""

    def of_patient(self, number: int, rng: np.random.Generator) -> Batch:
        """The samples of ``draw_of``, cut."""


SAMPLERS: dict[str, Callable[[Sequence[Case], Experiment], Sampler]] = {
    "segmentation": PatchSampler,
    "classification": ClassSampler,
}
"""By task; a task that is not listed trains on patches."""


def build_sampler(cases: Sequence[Case], experiment: Experiment) -> Sampler:
    """The sampler of an experiment's training cases.

    Raises:
        DataError: there are no cases.
    """
    return SAMPLERS.get(experiment.task.name, PatchSampler)(cases, experiment)
