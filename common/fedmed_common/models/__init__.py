"""The networks, one architecture a file: ``build(settings, plan) -> Module``. What can be named is in ``catalogue``."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from fedmed_common.config import Experiment

if TYPE_CHECKING:
    from torch.nn import Module


def build_model(experiment: Experiment) -> Module:
    """The experiment's network on the CPU in float32, its weights drawn from ``experiment.seed`` alone.

    Two processes get equal weights, and the global random state stays as it was. The network maps ``(B, channels, *patch)`` to
    logits: of segmentation ``(B, 1 + classes, *patch)``, background first; of classification ``(B, classes)``. While training it
    may give several, as a tuple: see ``tasks.supervision``.

    Raises:
        ConfigError: settings that it cannot be built with, or a package that is not installed.
    """
    import torch

    build = import_module(experiment.model.module).build
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(experiment.seed)
        network: Module = build(experiment.model, experiment.plan)
    return network.float()
