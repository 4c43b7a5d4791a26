"""What of a recipe is summed in secret, both halves: a site's arrays before they are masked, and what becomes of the sum.

A site's update is multiplied by its share p_k of the patients, or by 1 / n, before it is summed; the server divides by the
shares of those who stayed. Holder rows are two sums more: of the weighted rows, and of their weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from fedmed_common import entropy
from fedmed_common.secure.circle import Party
from fedmed_common.secure.fixed_point import Block, Layout, blocks_of, check_range
from fedmed_common.training_config import SecureAggregation
from fedmed_strategies.aggregators.holders import Holders, along
from fedmed_strategies.filters.norm_bound import bounded
from fedmed_strategies.pieces import Arrays
from fedmed_strategies.recipe import Recipe
from fedmed_strategies.statistics.base import Statistic

DELTA, SUMS, HELD, WEIGHTS = "delta", "sums", "held", "held-weights"
_ROUNDING = 1 - 1e-6
NOISE_SPAN = 12.0
"""So many standard deviations of its noise may a statistic lie beyond what its patients can add."""


def shares_of(recipe: Recipe, party: Party) -> dict[str, float]:
    """By site what its update is multiplied by."""
    if recipe.weights.equal:
        return {name: 1.0 / len(party.names) for name in party.names}
    total = sum(party.patients.values())
    return {name: count / total for name, count in party.patients.items()}


def layout(
    recipe: Recipe,
    settings: SecureAggregation,
    template: Arrays,
    sums: Arrays,
    rows: Mapping[str, int],
    classes: int,
    rate: float,
    sites: int,
) -> Layout:
    """The vector of a round's training. ``template``: arrays like an update's, ``sums``: like what is sent beside it; ``rows``:
    by name of a head's array the axis of classes. A site's number is ``range`` at most before it is multiplied by its share."""
    blocks = [*blocks_of(template, _delta_limit(recipe, settings), f"{DELTA}/")]
    blocks += blocks_of(sums, sites * _sums_limit(settings, rate), f"{SUMS}/")
    if isinstance(recipe.aggregator, Holders):
        held = {name: template[name] for name in rows if name in template}
        blocks += [
            Block(name=WEIGHTS, shape=(classes,), limit=1.0),
            *blocks_of(held, settings.range, f"{HELD}/"),
        ]
    return Layout(tuple(blocks), sites)


def check_ranges(
    recipe: Recipe, settings: SecureAggregation, delta: Arrays, sums: Arrays, rate: float
) -> None:
    """See that a sum over sites with numbers like this site's cannot be more than the layout holds.

    Raises:
        PolicyRefusal: ``secure_range``.
    """
    if recipe.central_privacy is None:
        for name, array in delta.items():
            check_range(name, array, settings.range)
    for name, array in sums.items():
        check_range(name, array, _sums_limit(settings, rate))


def _delta_limit(recipe: Recipe, settings: SecureAggregation) -> float:
    """Of the sum of updates, each multiplied by its site's share; with what central privacy's noise may add to it."""
    central = recipe.central_privacy
    if central is None:
        return settings.range
    return central.clipping_norm * (1.0 + NOISE_SPAN * central.noise_multiplier)


def _sums_limit(settings: SecureAggregation, rate: float) -> float:
    """Of one site."""
    return settings.range * max(1.0, 1.0 / rate)


def statistic_layout(statistic: Statistic, zeros: Arrays, sensitivity: float, party: Party) -> Layout:
    """The vector of a statistic, of so many patients as all parties have."""
    patients = sum(party.patients.values())
    noise = statistic.noise_multiplier * NOISE_SPAN
    return Layout(tuple(blocks_of(zeros, sensitivity * (patients + noise))), len(party.names))


def of_site(
    recipe: Recipe,
    party: Party,
    site: str,
    delta: Arrays,
    sums: Arrays,
    rows: Mapping[str, int],
    presence: NDArray[np.integer],
    background: int,
) -> dict[str, NDArray[np.float64]]:
    """What the site adds, by the names of the layout's blocks; with central privacy clipped, and with its share of noise.
    ``presence``: by class so many patients as the site says that it has."""
    shares = shares_of(recipe, party)
    central = recipe.central_privacy
    deviation = 0.0
    if central is not None:
        delta = bounded(delta, central.clipping_norm * _ROUNDING)[0]
        largest = max(shares.values())
        deviation = central.noise_multiplier * central.clipping_norm * largest / math.sqrt(party.honest)
    arrays = {
        f"{DELTA}/{name}": _noisy(array * np.float64(shares[site]), deviation)
        for name, array in delta.items()
    }
    arrays |= {f"{SUMS}/{name}": np.asarray(array, np.float64) for name, array in sums.items()}
    if isinstance(recipe.aggregator, Holders):
        most = recipe.aggregator.of_counts(np.array(max(1, *party.patients.values())))
        weights = recipe.aggregator.of_counts(presence) / (most * len(party.names))
        each = np.concatenate([np.zeros(background), weights])
        arrays[WEIGHTS] = weights
        for name, axis in rows.items():
            if name in delta:
                arrays[f"{HELD}/{name}"] = along(each, axis, delta[name].ndim) * delta[name]
    return arrays


def step_of(
    opened: Mapping[str, NDArray[np.float64]],
    left: float,
    rows: Mapping[str, int],
    background: int,
) -> tuple[Arrays, Arrays]:
    """The combined update, and the sums beside it. ``left``: the shares of those who stayed, together."""
    step: Arrays = {
        name.removeprefix(f"{DELTA}/"): (array / left).astype(np.float32)
        for name, array in opened.items()
        if name.startswith(f"{DELTA}/")
    }
    sums = {
        name.removeprefix(f"{SUMS}/"): array.astype(np.float32)
        for name, array in opened.items()
        if name.startswith(f"{SUMS}/")
    }
    if WEIGHTS in opened:
        weights = opened[WEIGHTS]
        held = np.concatenate([np.zeros(background, bool), weights > 0])
        each = np.concatenate([np.ones(background), np.where(weights > 0, weights, 1.0)])
        for name, axis in rows.items():
            if name in step:
                own = opened[f"{HELD}/{name}"] / along(each, axis, step[name].ndim)
                step[name] = np.where(along(held, axis, step[name].ndim), own, step[name]).astype(np.float32)
    return step, sums


def _noisy(array: NDArray[np.float64], deviation: float) -> NDArray[np.float64]:
    if not deviation:
        return array
    noise: NDArray[np.float64] = entropy.noise(array.size, deviation).numpy().reshape(array.shape)
    return array + noise
