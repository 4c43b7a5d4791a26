"""Losses that weigh what is rare or hard: class-balanced, focal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedmed_strategies.pieces import Loss, SiteHalf, StatisticPiece, Work
from fedmed_strategies.statistics.counts import Counts, counts_of

if TYPE_CHECKING:
    from torch import Tensor

    from fedmed_common.tasks.losses import Loss as SampleLoss


class ClassBalanced(Loss):
    """A sample's loss times the mean weight of the classes that it shows: (1 - beta) / (1 - beta^N_c), over the classes' mean.

    N_c counts all sites' training patients who show class c. A sample that shows no class has the least of the weights. Where a
    label-aware sampler is not allowed, as with privacy, this is what takes its place.
    """

    name = "class_balanced"
    source = "Cui et al. 2019, 'Class-balanced loss based on effective number of samples', CVPR, equation 4"
    beta: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.999

    @property
    def statistics(self) -> tuple[StatisticPiece, ...]:
        """Counts of everyone's patients."""
        return (Counts(),)

    def at_site(self, work: Work) -> SiteHalf:
        """Weighs samples."""
        counts = np.maximum(counts_of(work.down), 1.0)
        weights = (1 - self.beta) / (1 - self.beta**counts)
        return _Weighed(weights / weights.mean(), work.background)


class _Weighed(SiteHalf):
    def __init__(self, weights: NDArray[np.float64], background: bool) -> None:
        self._weights, self._background = weights, background

    def recast(self, loss: SampleLoss) -> SampleLoss:
        return lambda logits, target, annotated: loss(logits, target, annotated) * self._of(target, annotated)

    def _of(self, target: Tensor, annotated: Tensor) -> Tensor:
        import torch

        if self._background:
            classes = range(1, len(self._weights) + 1)
            shown = torch.stack([(target == number).flatten(1).any(1) for number in classes], 1)
        else:
            shown = target.bool()
        shown = shown & annotated.to(shown.device)
        weights = torch.as_tensor(self._weights, dtype=torch.float32, device=target.device)
        mean = (shown * weights).sum(1) / shown.sum(1).clamp(min=1)
        return mean.where(shown.any(1), weights.min())


class Rarity(Loss):
    """Dice and cross entropy in which class c weighs min(most, (N_max / N_c)^power), the background 1.

    N_c counts all sites' training patients who show class c, N_max the commonest class's. The weights are of voxels in the cross
    entropy, and of the classes' terms in Dice. Counts of patients, not of voxels, keep them within ``most``.
    """

    name = "rarity"
    source = (
        "Cui et al. 2019, 'Class-balanced loss based on effective number of samples', CVPR, section 3, with counts of "
        "patients"
    )
    power: Annotated[float, Field(ge=0.0, le=1.0)] = 0.5
    most: Annotated[float, Field(ge=1.0)] = 10.0

    @property
    def statistics(self) -> tuple[StatisticPiece, ...]:
        """Counts of everyone's patients."""
        return (Counts(),)

    def at_site(self, work: Work) -> SiteHalf:
        """Takes the loss's place."""
        counts = np.maximum(counts_of(work.down), 1.0)
        weights = np.minimum((counts.max() / counts) ** self.power, self.most)
        return _Rarity(np.concatenate([[1.0], weights]))


class _Rarity(SiteHalf):
    def __init__(self, weights: NDArray[np.float64]) -> None:
        self._weights = weights

    def recast(self, loss: SampleLoss) -> SampleLoss:
        import torch

        from fedmed_common.tasks.losses import dice_ce

        def weighed(logits: Tensor, target: Tensor, annotated: Tensor) -> Tensor:
            weights = torch.as_tensor(self._weights, dtype=logits.dtype, device=logits.device)
            recast: Tensor = dice_ce(logits, target, annotated, weights=weights)
            return recast

        return weighed


class Focal(Loss):
    """Focal loss in the place of cross entropy: with Dice for a segmentation, as ``task.loss = 'dice_focal'``."""

    name = "focal"
    source = "Lin et al. 2017, 'Focal loss for dense object detection', ICCV, equation 4"
    gamma: Annotated[float, Field(ge=0.0, le=10.0)] = 2.0

    def at_site(self, work: Work) -> SiteHalf:
        """Takes the loss's place."""
        return _Focal(work.kind, self.gamma)


class _Focal(SiteHalf):
    def __init__(self, kind: str, gamma: float) -> None:
        self._kind, self._gamma = kind, gamma

    def recast(self, loss: SampleLoss) -> SampleLoss:
        from functools import partial

        from fedmed_common.tasks import label_losses
        from fedmed_common.tasks.losses_voxelwise import dice_focal

        kinds = {
            "segmentation": dice_focal,
            "multi": label_losses.binary_focal,
            "single": label_losses.focal,
        }
        return partial(kinds[self._kind], gamma=self._gamma)
