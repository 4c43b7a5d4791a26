"""The networks, one architecture a file: ``build(settings, plan) -> Module``. What can be named is in ``catalogue``."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from fedmed_common.config import Experiment
from fedmed_common.errors import ConfigError
from fedmed_common.monai_import import load_monai

if TYPE_CHECKING:
    from torch.nn import Module

    from fedmed_common.weights import Loaded


def build_model(experiment: Experiment) -> Module:
    """The experiment's network on the CPU in float32, its weights drawn from ``experiment.seed`` alone.

    Two processes get equal weights, and the global random state stays as it was. The network maps ``(B, channels, *patch)`` to
    logits: of segmentation ``(B, 1 + classes, *patch)``, background first; of classification ``(B, classes)``. While training it
    may give several, as a tuple: see ``tasks.supervision``. What ``experiment.transfer`` freezes is frozen, and its adapters are
    there; ``transfer.weights`` is not read: a site's weights come with its orders.

    Raises:
        ConfigError: settings that it cannot be built with, or a package that is not installed.
    """
    return start_model(experiment, None)[0]


def start_model(experiment: Experiment, weights: Path | None) -> tuple[Module, Loaded | None]:
    """What ``build_model`` gives, with the weights of a file where they fit, and what became of that file.

    Raises:
        ConfigError: as ``build_model``; or the file cannot be read, or nothing in it fits.
    """
    require_packages(experiment)

    import torch

    from fedmed_common.transfer import apply_transfer
    from fedmed_common.weights import load_weights

    load_monai()
    build = import_module(experiment.model.module).build
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(experiment.seed)
        network: Module = build(experiment.model, experiment.plan).float()
        loaded = None
        if weights is not None:
            loaded = load_weights(
                network, weights, classes=experiment.task.classes, head=experiment.model.head
            )
        apply_transfer(network, experiment)
    return network.float(), loaded


def require_packages(experiment: Experiment) -> None:
    """Refuse an experiment whose network is made of a package that is not installed. None is imported.

    Raises:
        ConfigError: names the package, and the extra that brings it.
    """
    needed = [(package, "model.name") for package in experiment.model.packages]
    if experiment.transfer.lora is not None:
        needed.append(("peft", "transfer.lora"))
    for package, field in needed:
        if find_spec(package) is None:
            raise ConfigError(
                f"needs the package '{package}', which is not installed",
                field=field,
                fix="pip install 'fedmed[transformers]'",
            )
