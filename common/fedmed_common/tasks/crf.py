"""A fully connected conditional random field over class probabilities (Kraehenbuehl and Koltun 2011, NIPS).

Every voxel is joined with every other: by how near they are and how alike their intensities (the bilateral kernel), and by how
near they are alone (the smoothness kernel; equation 3). Two different classes disagree by as much, whichever they are (Potts).
Mean field inference (algorithm 1) sends messages by filtering: the smoothness kernel is a separable Gaussian, the bilateral one
lies on a permutohedral lattice (Adams et al. 2010, 'Fast high-dimensional filtering using the permutohedral lattice'), so that
memory and time grow with the number of voxels and not with its square; the lattice makes it an approximation.

As in the authors' code, and unlike equation 3, kernels are normalised on both sides, and a voxel hears itself too. It runs on the
CPU, and gives the same numbers each time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.sparse import csc_array
from scipy.special import softmax

from fedmed_common.task_config import CRF

Floats = NDArray[np.float32]
Places = NDArray[np.integer[Any]]
Filter = Callable[[Floats], Floats]
Spans = tuple[NDArray[np.float64], NDArray[np.float64]]

GREY_VALUES = 255.0
LEAST_PROBABILITY = 1e-6
_REACH = 5.0
"""Deviations after which the smoothness kernel ends: there it is 4e-6 of its middle."""
_AT_ONCE = 2**18
_HASH = 0x9E3779B97F4A7C15
_SHARE = 0.5
"""What a vertex of the lattice gets of each neighbour's value while it blurs along an axis."""


def refine(probabilities: Floats, image: Floats, settings: CRF, spans: Spans | None = None) -> Floats:
    """The field's class probabilities ``(K, *S)`` for the network's ``(K, *S)`` of an image ``(C, *S)``, in 2D or 3D.

    ``spans``: what ``spans_of`` says of the case that the image is a slice of; absent: of the image.
    """
    shape = probabilities.shape[1:]
    prior = np.log(np.maximum(probabilities, LEAST_PROBABILITY)).reshape(len(probabilities), -1).T
    kernels: list[tuple[float, Filter]] = []
    if settings.bilateral_weight:
        lattice = Lattice(features_of(image, settings, spans or spans_of(image)))
        kernels.append((settings.bilateral_weight, normalised(lattice, len(prior))))
    if settings.smoothness_weight:
        sigma = settings.smoothness_sigma
        kernels.append((settings.smoothness_weight, normalised(smoothing(shape, sigma), len(prior))))
    current: Floats = softmax(prior, axis=1)
    for _ in range(settings.iterations):
        heard = prior.copy()
        for weight, kernel in kernels:
            heard += np.float32(weight) * kernel(current)
        current = softmax(heard, axis=1)
    return current.T.reshape(probabilities.shape)


def spans_of(image: Floats) -> Spans:
    """Each channel's least value and range, ``(C, 1)`` both; a range of nothing is 1."""
    channels = image.reshape(len(image), -1).astype(np.float64)
    low, high = channels.min(1, keepdims=True), channels.max(1, keepdims=True)
    return low, np.where(high > low, high - low, 1.0)


def features_of(image: Floats, settings: CRF, spans: Spans) -> NDArray[np.float64]:
    """Where voxels lie and what they show, in deviations of the bilateral kernel: ``(N, dimensions + C)``.

    Each channel is stretched to 0 .. 255 over its span, so that one deviation suits every modality.
    """
    shape = image.shape[1:]
    places = np.indices(shape).reshape(len(shape), -1) / per_axis(settings.bilateral_sigma, shape)[:, None]
    channels = image.reshape(len(image), -1).astype(np.float64)
    low, span = spans
    shown = (channels - low) / span * (GREY_VALUES / settings.intensity_sigma)
    return np.concatenate([places, shown]).T


def per_axis(sigma: float | Sequence[float], shape: Sequence[int]) -> NDArray[np.float64]:
    """One deviation for each axis."""
    return np.broadcast_to(np.asarray(sigma, np.float64), (len(shape),))


def smoothing(shape: Sequence[int], sigma: float | Sequence[float]) -> Filter:
    """Sums over all voxels, weighted by a Gaussian of their distance; ``(N, K)`` to the same."""
    deviations = tuple(per_axis(sigma, shape))

    def apply(values: Floats) -> Floats:
        maps = values.reshape(*shape, -1)
        each = [
            gaussian_filter(maps[..., place], deviations, mode="constant", truncate=_REACH)
            for place in range(maps.shape[-1])
        ]
        return np.stack(each, -1).reshape(values.shape)

    return apply


def normalised(kernel: Filter, voxels: int) -> Filter:
    """The kernel with the root of each voxel's sum of weights divided out on both sides, by which it stays symmetric."""
    sums = kernel(np.ones((voxels, 1), np.float32))
    scale: Floats = (1 / np.sqrt(np.maximum(sums, 1e-20))).astype(np.float32)

    def apply(values: Floats) -> Floats:
        result: Floats = scale * kernel(scale * values)
        return result

    return apply


class Lattice:
    """Sums over all points, weighted by a Gaussian of deviation 1 of their distance; ``(N, K)`` to the same.

    A point's value is shared among the corners of the simplex that it lies in, blurred along each of the lattice's axes, and read
    at the same corners (Adams et al. 2010, section 3). Only corners that some point touches are kept.
    """

    def __init__(self, features_ND: NDArray[np.float64]) -> None:
        points, dimensions = features_ND.shape
        corners = dimensions + 1
        parts = [_simplex(features_ND[first : first + _AT_ONCE]) for first in range(0, points, _AT_ONCE)]
        known = np.unique(np.concatenate([touched for touched, _, _ in parts]))
        rows = [np.searchsorted(known, touched).astype(np.int32)[places] for touched, places, _ in parts]
        shares = np.concatenate([share.ravel() for _, _, share in parts])
        starts = np.arange(0, points * corners + 1, corners)
        self._splat = csc_array((shares, np.concatenate(rows), starts), shape=(len(known), points))
        self._neighbours = [
            (_places_of(known + offset, known), _places_of(known - offset, known))
            for offset in _offsets(dimensions)
        ]

    def __call__(self, values: Floats) -> Floats:
        held = self._splat @ values
        both = self._blurred(held, self._neighbours) + self._blurred(held, self._neighbours[::-1])
        result: Floats = self._splat.T @ both
        return result

    @staticmethod
    def _blurred(held: Floats, neighbours: Sequence[tuple[Places, Places]]) -> Floats:
        """Along one axis after the other. Where corners are missing the order matters: both together are symmetric."""
        padded = np.concatenate([held, np.zeros_like(held[:1])])
        for above, below in neighbours:
            padded[:-1] += np.float32(_SHARE) * (padded[above] + padded[below])
        return padded[:-1]


def _simplex(features_ND: NDArray[np.float64]) -> tuple[NDArray[np.uint64], Places, Floats]:
    """The hashes of the corners that the points touch; and each point's corners among them, and its barycentric shares."""
    dimensions = features_ND.shape[1]
    corners = dimensions + 1
    axes = np.arange(1, corners)
    scaled = features_ND * (sqrt(2 / 3) * corners / np.sqrt(axes * (axes + 1)))
    elevated = np.zeros((len(scaled), corners))
    elevated[:, :-1] = scaled[:, ::-1].cumsum(1)[:, ::-1]
    elevated[:, 1:] -= axes * scaled
    steps = np.rint(elevated / corners)
    base = steps * corners
    order = np.argsort(base - elevated, axis=1, kind="stable")
    rank = np.empty_like(order)
    np.put_along_axis(rank, order, np.broadcast_to(np.arange(corners), order.shape), 1)
    rank += steps.sum(1, keepdims=True).astype(rank.dtype)
    turn = (rank < 0).astype(rank.dtype) - (rank >= corners)
    rank += corners * turn
    base += corners * turn
    offsets = np.empty_like(elevated)
    np.put_along_axis(offsets, rank, (elevated - base) / corners, 1)
    shares = np.zeros((len(scaled), corners + 1))
    shares[:, :-1] = offsets[:, ::-1]
    shares[:, 1:] -= offsets[:, ::-1]
    shares[:, 0] += 1 + shares[:, -1]
    wrapped = [base + corner - corners * (rank > dimensions - corner) for corner in range(corners)]
    hashes = np.stack([_hashed(keys[:, :-1].astype(np.int64)) for keys in wrapped], 1)
    touched, places = np.unique(hashes, return_inverse=True)
    return touched, places.ravel().astype(np.int32), shares[:, :-1].astype(np.float32)


def _factors(dimensions: int) -> NDArray[np.uint64]:
    return np.array([pow(_HASH, place, 2**64) for place in range(1, dimensions + 1)], np.uint64)


def _hashed(keys: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Linear, so that a neighbour's hash is a sum. Of ten million corners two share one with a chance of 3 in a million."""
    hashes: NDArray[np.uint64] = (keys.view(np.uint64) * _factors(keys.shape[1])).sum(1, dtype=np.uint64)
    return hashes


def _offsets(dimensions: int) -> NDArray[np.uint64]:
    """What a step along each of the lattice's axes adds to a hash."""
    steps = np.full((dimensions + 1, dimensions), -1, np.int64)
    steps[range(dimensions), range(dimensions)] = dimensions
    return _hashed(steps)


def _places_of(wanted: NDArray[np.uint64], known: NDArray[np.uint64]) -> Places:
    """Where each lies among the known; behind the last where it is not there."""
    places = np.searchsorted(known, wanted)
    there = known[np.minimum(places, len(known) - 1)] == wanted
    return np.where(there, places, len(known))
