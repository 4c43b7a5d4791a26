"""Losses that know where a class ends: the boundary loss, and U-Net's cross entropy. What they take and give: see ``losses``.

Distances are in voxels, computed from the label on the CPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt, find_objects
from scipy.ndimage import label as components
from torch import Tensor

from fedmed_common.site_config import UNLABELLED
from fedmed_common.tasks.losses import mean_over, merged, one_hot, seen
from fedmed_common.tasks.losses_overlap import generalised_dice
from fedmed_common.tasks.losses_voxelwise import class_weights, log_true

_REACH = 6.0
"""So many ``border_sigma`` away a border's weight is less than float32 can tell from none."""


def boundary(logits: Tensor, label: Tensor, annotated: Tensor) -> Tensor:
    """Mean over voxels of a class's probability times the signed distance to its true boundary, mean over the present classes.

    Kervadec et al. 2019, 'Boundary loss for highly unbalanced segmentation', MIDL, eq. 5. The distance is negative inside, as in
    the authors' code, so the loss can be too. A class that a sample does not show, or that fills it, has no boundary and no
    term. Unlabelled voxels are taken to lie outside every class while distances are measured, and count for nothing.
    """
    log_probability, known_BC = merged(logits, annotated)
    labelled = label != UNLABELLED
    truth = one_hot(seen(label, annotated), logits.shape[1])[:, 1:] & _wide(known_BC[:, 1:], label)
    distance = _of_each(truth.flatten(0, 1), signed_distance).reshape(truth.shape)
    counted = labelled[:, None].flatten(2)
    weighted = (log_probability[:, 1:].exp() * distance).flatten(2) * counted
    present = truth.flatten(2).any(2) & ~truth.flatten(2).all(2)
    return mean_over(weighted.sum(2) / counted.sum(2).clamp(min=1), present)


def dice_boundary(
    logits: Tensor, label: Tensor, annotated: Tensor, *, boundary_weight: float = 0.01
) -> Tensor:
    """``generalised_dice`` plus ``boundary_weight`` times ``boundary``: the paper's combination, eq. 6.

    The paper raises the weight by 0.01 in each epoch; a loss knows of no epoch, and here it stays.
    """
    return generalised_dice(logits, label, annotated) + boundary_weight * boundary(logits, label, annotated)


def border_ce(
    logits: Tensor,
    label: Tensor,
    annotated: Tensor,
    *,
    border_weight: float = 10.0,
    border_sigma: float = 5.0,
) -> Tensor:
    """Cross entropy, weighted to balance the classes and to keep apart what nearly touches; mean over the labelled voxels.

    Ronneberger et al. 2015, 'U-Net', MICCAI, eq. 1 and 2: a background voxel gets ``border_weight`` x exp(-(d1 + d2)^2 /
    (2 border_sigma^2)) more, d1 and d2 being the distances to the nearest two instances. An instance is a connected component
    of a class, diagonals included. The balance, which the paper leaves open, is ``class_weights``.
    """
    labelled = label != UNLABELLED
    truth_B = seen(label, annotated)

    def near_two(mask: NDArray[np.int64]) -> NDArray[np.float32]:
        return near_two_instances(mask, border_sigma)

    border = border_weight * _of_each(truth_B, near_two)
    losses = []
    for one, truth, known, kept, extra in zip(logits, truth_B, annotated, labelled, border, strict=True):
        truth_1N = truth[kept][None]
        if not truth_1N.numel():
            losses.append(one.sum()[None] * 0.0)
            continue
        weight = class_weights(truth_1N, logits.shape[1]) + extra[kept][None]
        losses.append(-(weight * log_true(one[None, :, kept], truth_1N, known[None])).mean(1))
    return torch.cat(losses)


def signed_distance(mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """To the mask's boundary: outside, the distance to the nearest voxel in it; inside, minus that to the nearest one out of it,
    plus 1, so that both are 0 at the boundary itself. 0 everywhere where there is no boundary."""
    if not mask.any() or mask.all():
        return np.zeros(mask.shape, np.float32)
    inside = distance_transform_edt(mask)
    return np.asarray(np.where(mask, 1 - inside, distance_transform_edt(~mask)), np.float32)


def near_two_instances(label: NDArray[np.int64], sigma: float) -> NDArray[np.float32]:
    """exp(-(d1 + d2)^2 / (2 sigma^2)) at each background voxel; 0 elsewhere, and where fewer than two instances are near."""
    nearest = np.full((2, *label.shape), np.inf)
    reach = math.ceil(_REACH * sigma)
    everywhere = np.ones((3,) * label.ndim)
    for value in np.setdiff1d(np.unique(label), (0, UNLABELLED)):
        instances, _ = components(label == value, everywhere)
        for number, box in enumerate(find_objects(instances), start=1):
            around = tuple(slice(max(side.start - reach, 0), side.stop + reach) for side in box)
            distance = distance_transform_edt(instances[around] != number)
            both = nearest[(slice(None), *around)]
            both[...] = np.sort(np.concatenate([both, distance[None]]), axis=0)[:2]
    weight = np.exp(-np.square(nearest.sum(0)) / (2 * sigma**2))
    return np.asarray(np.where(label == 0, weight, 0.0), np.float32)


def _of_each(maps: Tensor, function: Callable[[NDArray[Any]], NDArray[np.float32]]) -> Tensor:
    """What a function makes of each map of a batch, on the maps' device."""
    made = [function(one) for one in maps.cpu().numpy()]
    return torch.from_numpy(np.stack(made)).to(maps.device)


def _wide(known_BK: Tensor, label: Tensor) -> Tensor:
    return known_BK.reshape(*known_BK.shape, *[1] * (label.dim() - 1))
