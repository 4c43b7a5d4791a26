"""Which arrays of a network are norms, head and class rows; the last layer, where it is one matrix; the bias of the logits."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from fedmed_common import params
from fedmed_common.config import Experiment
from fedmed_common.errors import ConfigError
from fedmed_strategies.pieces import Layers
from fedmed_strategies.statistics.base import Sizes

_NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
_logit_biases: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()
_ROWS_FIRST = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_ROWS_SECOND = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True, slots=True)
class LastLayer:
    """The names of its weight, ``(C, D)`` with ones behind, and of its bias ``(C,)``; and the module that is called."""

    weight: str
    bias: str
    module: nn.Module


def layers_of(model: nn.Module, head: tuple[str, ...], outputs: int) -> Layers:
    """What pieces know of a network. ``head``: patterns of the names that depend on the classes."""
    norms, rows = set[str](), dict[str, int]()
    floating = {name for name, tensor in model.state_dict().items() if tensor.is_floating_point()}
    for prefix, module in model.named_modules():
        if isinstance(module, _NORMS):
            norms |= {f"{prefix}.{name}" for name in module.state_dict()} & floating
        axis = _row_axis(module, outputs)
        if axis is not None and any(fnmatchcase(f"{prefix}.weight", pattern) for pattern in head):
            rows |= {f"{prefix}.weight": axis}
            rows |= {f"{prefix}.bias": 0} if getattr(module, "bias", None) is not None else {}
    in_head = {name for name in floating if any(fnmatchcase(name, pattern) for pattern in head)}
    return Layers(trained=params.trained(model), norms=frozenset(norms), head=frozenset(in_head), rows=rows)


def last_layer(model: nn.Module, layers: Layers) -> LastLayer:
    """The layer that makes logits of features, voxel by voxel.

    Raises:
        ConfigError: none, or several, or one that is more than a matrix and a bias.
    """
    modules: dict[str, Any] = dict(model.named_modules())
    names = [name.removesuffix(".weight") for name in layers.rows if name.endswith(".weight")]
    usable = [
        name
        for name in names
        if f"{name}.bias" in layers.rows and modules[name].weight[0].numel() == modules[name].weight.shape[1]
    ]
    if len(names) != 1 or not usable:
        raise ConfigError(
            "this network's last layer is not one 1x1 convolution with a bias, which the recipe changes",
            field="model.name",
            fix="use an architecture that ends in one, as 'unet_2015', or leave the stage out of recipe",
        )
    return LastLayer(f"{names[0]}.weight", f"{names[0]}.bias", modules[names[0]])


def logit_bias(model: nn.Module, layers: Layers, image: tuple[int, ...]) -> str:
    """The name of the bias ``(C,)`` that is added to the logits as it is: found by changing each, on an image of noise.

    ``image``: its shape, ``(channels, *patch)``. The network is afterwards as it was, and is tried once.

    Raises:
        ConfigError: there is none.
    """
    if model in _logit_biases:
        return _logit_biases[model]
    shown = torch.randn(1, *image, generator=torch.Generator().manual_seed(0))
    parameters, training = dict(model.named_parameters()), {each: each.training for each in model.modules()}
    try:
        model.eval()
        before = _logits(model, shown)
        for name in reversed([name for name in layers.rows if name.endswith("bias")]):
            kept = parameters[name].detach().clone()
            shift = torch.arange(1.0, 1.0 + len(kept))
            parameters[name].data.add_(shift.to(kept))
            moved = (_logits(model, shown) - before).reshape(1, len(kept), -1)
            parameters[name].data.copy_(kept)
            if torch.allclose(moved, shift[None, :, None].expand_as(moved), atol=1e-3):
                _logit_biases[model] = name
                return name
    finally:
        for module, mode in training.items():
            module.training = mode
    raise ConfigError(
        "no bias of this network is added to its logits as it is, and the recipe changes that one",
        field="model.name",
        fix="use an architecture that ends in a convolution with a bias, as 'unet', or leave the stage out of recipe",
    )


@torch.no_grad()
def _logits(model: nn.Module, image: Tensor) -> Tensor:
    outputs = model(image.to(next(model.parameters()).device))
    return (outputs if isinstance(outputs, Tensor) else outputs[0]).float().cpu()


def _row_axis(module: nn.Module, outputs: int) -> int | None:
    """Along which axis of its weight a layer has one row for each output; None where it has not."""
    weight = getattr(module, "weight", None)
    if isinstance(module, _ROWS_FIRST) and weight is not None and weight.shape[0] == outputs:
        return 0
    if isinstance(module, _ROWS_SECOND) and weight is not None and weight.shape[1] == outputs:
        return 1
    return None


def sizes_of(experiment: Experiment, model: nn.Module | None) -> Sizes:
    """What the shapes of statistics of an experiment depend on. Without its network, no features are known."""
    plan = experiment.plan
    features = 0
    if model is not None:
        features = _features_of(model, layers_of(model, experiment.model.head, plan.outputs))
    return Sizes(
        classes=len(experiment.task.classes),
        outputs=plan.outputs,
        channels=plan.in_channels,
        features=features,
    )


def _features_of(model: nn.Module, layers: Layers) -> int:
    """How many numbers the last layer sees of a voxel; 0 where it is not one matrix."""
    try:
        layer = last_layer(model, layers)
    except ConfigError:
        return 0
    return int(layer.module.weight.shape[1])  # type: ignore[index]
