"""Network architectures, one a file. A new one is a function ``build(experiment) -> Module`` and a line in ``MODELS``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedmed_common.config import Experiment
from fedmed_common.lookup import load

if TYPE_CHECKING:
    from torch.nn import Module

MODELS: dict[str, str] = {"unet": "fedmed_common.models.unet:build"}


def build_model(experiment: Experiment) -> Module:
    """The experiment's network on the CPU in float32, its weights drawn from ``experiment.seed`` alone.

    Two processes get equal weights, and the global random state stays as it was. The network maps ``(B, channels, *patch)`` to
    logits ``(B, 1 + classes, *patch)``, background first.

    Raises:
        ConfigError: no model of this name, or settings that it cannot be built with.
    """
    import torch

    build = load(MODELS, experiment.model.name, field="model.name")
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(experiment.seed)
        network: Module = build(experiment)
    return network.float()
