"""A model's label map of a volume: prepared as in training, predicted as evaluation does, brought back to the volume's voxels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedmed_client.data.preprocess import Image, prepare, restored
from fedmed_client.data.volume import Volume
from fedmed_client.method import changed_inputs
from fedmed_client.predict.released import Released
from fedmed_client.workbench import Bench, bench_for, numerics
from fedmed_common import params
from fedmed_common.errors import ConfigError
from fedmed_common.tasks.segmentation import Segmentation
from fedmed_strategies.presets import recipe_of

_LEAST = 1e-12


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """``label``: uint8 ``(X, Y, Z)`` on the volume's voxels. ``doubt``: float32, the same: the entropy of the mean probabilities
    of several looks, 0 (sure) to 1 (all classes alike); None of one look. ``looks``: how many."""

    label: NDArray[np.uint8]
    doubt: NDArray[np.float32] | None
    looks: int


def predict(models: Sequence[Released], volume: Volume, *, flips: bool = False) -> Prediction:
    """What the models make of a volume. ``flips``: each looks also at the image mirrored along each axis (test-time
    augmentation).

    One model and one look is evaluation's own prediction, bit for bit, where the labels lie within the image's foreground.

    Raises:
        ConfigError: the models do not segment, or need what stays at a site.
        DataError: the volume does not fit the experiment.
    """
    data = models[0].experiment.data
    prepared = prepare(volume, np.zeros(volume.shape, np.uint8), data)
    image = prepared.image
    if len(models) == 1 and not flips:
        with _ready(models[0]) as (bench, task):
            least = models[0].decision.get("least_mm3")
            voxels = None if least is None else least / float(np.prod(prepared.spacing_mm))
            label = task.predict(bench.model, image, bench.device, None, voxels)
        return Prediction(label=restored(label, volume, data), doubt=None, looks=1)
    total: NDArray[np.float64] | None = None
    looks = 0
    for model in models:
        with _ready(model) as (bench, task):
            for axes in _mirrors(image) if flips else [()]:
                seen = task.probabilities(
                    bench.model, np.ascontiguousarray(np.flip(image, axes)), bench.device
                )
                seen = np.flip(seen, axes)
                total = seen.astype(np.float64) if total is None else total + seen
                looks += 1
    assert total is not None  # noqa: S101
    mean = total / looks
    doubt = -(mean * np.log(np.maximum(mean, _LEAST))).sum(0) / np.log(len(mean))
    label = mean.argmax(0).astype(np.uint8)
    return Prediction(
        label=restored(label, volume, data),
        doubt=restored(doubt.astype(np.float32), volume, data),
        looks=looks,
    )


def _mirrors(image: Image) -> list[tuple[int, ...]]:
    """As it is, and along each axis that has more than one voxel."""
    return [(), *((axis,) for axis in (1, 2, 3) if image.shape[axis] > 1)]


@contextmanager
def _ready(model: Released) -> Iterator[tuple[Bench, Segmentation]]:
    """The model on its device, in evaluation mode, with the arithmetic of its experiment."""
    bench = bench_for(model.order_text)
    recipe = recipe_of(bench.experiment)
    if not isinstance(bench.task, Segmentation):
        raise ConfigError(
            f"'{model.experiment.name}' classifies", file=model.file, fix="name a model that segments"
        )
    if recipe.personal is not None or recipe.inputs is not None:
        raise ConfigError(
            f"'{model.experiment.recipe.name}' needs what each site keeps to itself, which is not in the file",
            file=model.file,
            fix="predict with a model whose recipe keeps nothing at the sites",
        )
    with numerics(bench.experiment, bench.device), changed_inputs(bench.model, recipe, {}):
        params.to_model(model.parameters, bench.model)
        bench.model.eval()
        yield bench, bench.task
