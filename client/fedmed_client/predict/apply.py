"""A model's label map of a volume: prepared as in training, predicted as evaluation does, brought back to the volume's voxels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.modules.dropout import _DropoutNd

from fedmed_client.data.preprocess import Image, prepare, restored
from fedmed_client.data.volume import Volume
from fedmed_client.method import changed_inputs
from fedmed_client.predict.released import Released
from fedmed_client.workbench import Bench, bench_for, numerics
from fedmed_common import params
from fedmed_common.errors import ConfigError
from fedmed_common.site_config import Device
from fedmed_common.tasks.segmentation import Segmentation, without_little
from fedmed_strategies.presets import recipe_of

_LEAST = 1e-9
ANY_DEVICE = Device()
"""What a site without a file gives."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """``label``: uint8 ``(X, Y, Z)`` on the volume's voxels. ``doubt``: float32, the same: the entropy of the mean probabilities
    of several looks, 0 (sure) to 1 (all classes alike); None of one look. ``looks``: how many."""

    label: NDArray[np.uint8]
    doubt: NDArray[np.float32] | None
    looks: int


def predict(
    models: Sequence[Released],
    volume: Volume,
    *,
    flips: bool = False,
    dropouts: int = 0,
    device: Device = ANY_DEVICE,
) -> Prediction:
    """What the models make of a volume. ``flips``: each looks also at the image mirrored along each axis (test-time
    augmentation). ``dropouts``: so often with its dropout at work, the same each time it is called (Gal and Ghahramani 2016,
    'Dropout as a Bayesian approximation', ICML, section 4); 0: without. ``device``: what of the machine the site gives.

    One model and one look is evaluation's own prediction, bit for bit, where the labels lie within the image's foreground. What
    the model's decision says of small pieces holds for the mean of several looks as well.

    Raises:
        ConfigError: the models do not segment, or need what stays at a site or a reference.
        DataError: the volume does not fit the experiment.
    """
    data = models[0].experiment.data
    prepared = prepare(volume, np.zeros(volume.shape, np.uint8), data)
    image = prepared.image
    least = models[0].decision.get("least_mm3")
    voxels = None if least is None else least / float(np.prod(prepared.spacing_mm))
    if len(models) == 1 and not flips and not dropouts:
        with _ready(models[0], device) as (bench, task):
            label = task.predict(bench.model, image, bench.device, None, voxels)
        return Prediction(label=restored(label, volume, data), doubt=None, looks=1)
    if any(model.experiment.task.crf is not None for model in models):
        raise ConfigError(
            "several looks cannot be averaged with task.crf", fix="predict with one model and one look"
        )
    mean: NDArray[np.float32] | None = None
    looks = 0
    for model in models:
        with _ready(model, device) as (bench, task), _dropping(bench, model, dropouts):
            for axes in (_mirrors(image) if flips else [()]) * max(1, dropouts):
                seen = task.probabilities(
                    bench.model, np.ascontiguousarray(np.flip(image, axes)), bench.device
                )
                seen = np.flip(seen, axes)
                mean = np.array(seen, np.float32) if mean is None else np.add(mean, seen, out=mean)
                looks += 1
    assert mean is not None  # noqa: S101
    mean /= looks
    doubt = np.zeros(mean.shape[1:], np.float32)
    for share in mean:
        doubt -= share * np.log(np.maximum(share, _LEAST))
    doubt /= np.log(len(mean))
    label = mean.argmax(0).astype(np.uint8)
    if voxels is not None:
        label = without_little(label, mean, voxels)
    return Prediction(label=restored(label, volume, data), doubt=restored(doubt, volume, data), looks=looks)


def _mirrors(image: Image) -> list[tuple[int, ...]]:
    """As it is, and along each axis that has more than one voxel."""
    return [(), *((axis,) for axis in (1, 2, 3) if image.shape[axis] > 1)]


@contextmanager
def _dropping(bench: Bench, model: Released, dropouts: int) -> Iterator[None]:
    """With its dropout layers as in training, drawn from the experiment's seed; all others as they are.

    Raises:
        ConfigError: it has none.
    """
    layers = [layer for layer in bench.model.modules() if isinstance(layer, _DropoutNd) and layer.p > 0]
    if dropouts and not layers:
        raise ConfigError(
            f"'{bench.experiment.model.label}' was trained without dropout, which is what would differ from look to look",
            file=model.file,
            fix="leave --dropout out; --mirrored and --also look several times, too",
        )
    cuda = [bench.device] if bench.device.type == "cuda" else []
    with torch.random.fork_rng(cuda, enabled=bool(dropouts)):
        if dropouts:
            torch.manual_seed(bench.experiment.seed)
            for layer in layers:
                layer.train()
        yield


@contextmanager
def _ready(model: Released, device: Device) -> Iterator[tuple[Bench, Segmentation]]:
    """The model on its device, in evaluation mode, with the arithmetic of its experiment."""
    bench = bench_for(model.order_text, gpu=device.gpu != "none")
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
    if hasattr(bench.model, "prompt"):
        raise ConfigError(
            f"'{bench.experiment.model.name}' is shown where to look by a reference, and a new study has none",
            file=model.file,
            fix="predict with a model that needs no prompt",
        )
    with numerics(bench.experiment, bench.device, device.threads), changed_inputs(bench.model, recipe, {}):
        params.to_model(model.parameters, bench.model)
        bench.model.eval()
        yield bench, bench.task
