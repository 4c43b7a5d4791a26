"""Holder rows: what the network says of a class is averaged over the sites that have patients who show it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedmed_strategies.combining import Aggregator, Gathering, MeanGathering, Weighed
from fedmed_strategies.pieces import Arrays, Memory, Scene, Site

_WeightsOf = Callable[[Site, tuple[str, ...]], NDArray[np.float64]]


class Holders(Aggregator):
    """Row c of the head's arrays is averaged with weights E(n_kc) = (1 - beta^n_kc) / (1 - beta), everything else as ever.

    n_kc counts the training patients of site k who show class c; a count that a site hides is 1. A class that nobody holds, and
    the background, are averaged as everything else. Averaged over all sites, the row of a class that one site in six has seen
    is pulled back by the five others in each round. A sole holder's row is its own: under secure aggregation it would be a sum
    of one."""

    name = "holders"
    source = (
        "the effective number of Cui et al. 2019, 'Class-balanced loss based on effective number of samples', CVPR, "
        "equation 2"
    )
    beta: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.999

    def begin(self, template: Arrays, scene: Scene, memory: Memory) -> Gathering:
        """An empty gathering."""
        return _Rows(template, scene, self.weights_of)

    def weights_of(self, site: Site, classes: tuple[str, ...]) -> NDArray[np.float64]:
        """By class the weight of the site's row."""
        return self.of_counts(site.holds(classes))

    def of_counts(self, counts: NDArray[Any]) -> NDArray[np.float64]:
        """E(n) of counts of patients, at most 1 / (1 - beta)."""
        return np.asarray((1 - self.beta ** np.asarray(counts, np.float64)) / (1 - self.beta))


class _Rows:
    def __init__(self, template: Arrays, scene: Scene, weights_of: _WeightsOf) -> None:
        self._scene, self._weights_of = scene, weights_of
        self._mean = MeanGathering(template)
        self._axes = {name: axis for name, axis in scene.layers.rows.items() if name in template}
        self._rows = {name: np.zeros(template[name].shape) for name in self._axes}
        self._weights = np.zeros(len(scene.classes))

    def add(self, update: Weighed) -> None:
        self._mean.add(update)
        weights = self._weights_of(update.site, self._scene.classes)
        self._weights += weights
        each = np.concatenate([np.zeros(int(self._scene.background)), weights])
        for name, axis in self._axes.items():
            self._rows[name] += (
                along(each * update.freshness, axis, update.delta[name].ndim) * update.delta[name]
            )

    def result(self, total: float) -> Arrays:
        mean = self._mean.result(total)
        held = np.concatenate([np.zeros(int(self._scene.background), bool), self._weights > 0])
        each = np.concatenate(
            [np.ones(int(self._scene.background)), np.where(self._weights > 0, self._weights, 1.0)]
        )
        for name, axis in self._axes.items():
            dimensions = mean[name].ndim
            rows = self._rows[name] / along(each, axis, dimensions)
            mean[name] = np.where(along(held, axis, dimensions), rows, mean[name]).astype(np.float32)
        return mean


def along(values: NDArray[Any], axis: int, dimensions: int) -> NDArray[Any]:
    """Values by class in the shape of an array of so many dimensions, of which ``axis`` is the one of classes."""
    shape = [1] * dimensions
    shape[axis] = -1
    return values.reshape(shape)
