"""FedRDN: in training, each image is normalised by the channel statistics of a site drawn at random."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedmed_strategies.pieces import Arrays, Input, Memory, Scene, StatisticPiece, own
from fedmed_strategies.statistics.channels import Channels

if TYPE_CHECKING:
    from torch import Tensor


class RandomNormalisation(Input):
    """(x - mean_j) / deviation_j, j a site drawn anew for each image; in evaluation the site's own.

    The statistics are two numbers a channel of each site; all sites are sent them, without names and in no order that tells
    whose they are but to the site itself.
    """

    name = "random_normalisation"
    source = (
        "Yan et al. 2025, 'A simple data augmentation for feature distribution skewed federated learning', CVPR, equation "
        "5 (FedRDN)"
    )

    @property
    def statistics(self) -> tuple[StatisticPiece, ...]:
        """Every site's channel statistics."""
        return (Channels(),)

    def down(self, memory: Memory, scene: Scene) -> Arrays:
        """All sites' means and deviations ``(S, C)``, sorted, so that their order tells nothing."""
        rows = sorted(tuple(map(tuple, normalisation(sums))) for sums in _by_site(memory).values())
        means, deviations = (np.array([row[part] for row in rows], np.float32) for part in (0, 1))
        return {f"{self.name}/means": means, f"{self.name}/deviations": deviations}

    def change(self, image: Tensor, arrays: Mapping[str, NDArray[Any]], *, training: bool) -> Tensor:
        """The normalised image ``(B, C, *S)``. Which site, torch's own generator says."""
        import torch

        there = own(arrays, self.name)
        if training:
            places = torch.randint(len(there["means"]), (len(image),)).numpy()
            mean, deviation = there["means"][places], there["deviations"][places]
        else:
            mean, deviation = there["mean"][None], there["deviation"][None]
        mean, deviation = (
            torch.as_tensor(values, dtype=image.dtype, device=image.device).reshape(
                -1, image.shape[1], *[1] * (image.dim() - 2)
            )
            for values in (mean, deviation)
        )
        return (image - mean) / deviation


def _by_site(memory: Memory) -> dict[str, Memory]:
    """By site that has patients, its sums."""
    sites: dict[str, Memory] = {}
    for name, array in own(memory, "site").items():
        site, _, rest = name.partition("/channels/")
        if rest:
            sites.setdefault(site, {})[rest] = array
    return {site: sums for site, sums in sites.items() if sums["patients"][0] > 0}


def normalisation(sums: Mapping[str, NDArray[Any]]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean and standard deviation of each channel, out of a site's :class:`Channels`."""
    patients = max(float(sums["patients"][0]), 1.0)
    mean = sums["mean"] / patients
    variance = np.maximum(sums["square"] / patients - np.square(mean), 1e-6)
    return mean.astype(np.float32), np.sqrt(variance).astype(np.float32)
