"""A model as a run publishes it: one safetensors file, whose header says of which experiment, run and round it is."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from fedmed_common.config import Experiment
from fedmed_common.errors import ConfigError
from fedmed_common.loading import experiment_from_order

_NAMES = ("best", "last")


@dataclass(frozen=True, slots=True, kw_only=True)
class Released:
    """``digest``: SHA-256 of the file. ``decision``: how its predictions are decided on."""

    file: Path
    digest: str
    order_text: str
    experiment: Experiment
    run: str
    round: int
    parameters: Mapping[str, NDArray[np.float32]]
    decision: Mapping[str, NDArray[np.float32]]


def open_released(path: Path) -> Released:
    """The model in a file, or the best one in a run's folder.

    Raises:
        ConfigError: there is none, or it does not say of which experiment it is.
    """
    file = _file(path)
    try:
        with safe_open(file, framework="numpy") as tensors:
            about: dict[str, str] = tensors.metadata() or {}
            parameters = {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118
        text = about["experiment"]
        decision: dict[str, Any] = json.loads(about.get("decision", "{}"))
        number = int(about["round"])
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise ConfigError(
            f"is no model that a run published ({type(error).__name__})",
            file=file,
            fix="name models/best.safetensors of a run's folder",
        ) from None
    return Released(
        file=file,
        digest=hashlib.sha256(file.read_bytes()).hexdigest(),
        order_text=text,
        experiment=experiment_from_order(text),
        run=about.get("run", ""),
        round=number,
        parameters=parameters,
        decision={name: np.array(values, np.float32) for name, values in decision.items()},
    )


def open_ensemble(paths: Sequence[Path]) -> list[Released]:
    """Several models of one experiment's classes and preparation.

    Raises:
        ConfigError: they cannot be asked about the same image.
    """
    models = [open_released(path) for path in paths]
    first = models[0]
    for model in models[1:]:
        same = (
            model.experiment.task.classes == first.experiment.task.classes
            and model.experiment.data == first.experiment.data
            and model.experiment.task.name == first.experiment.task.name
        )
        if not same:
            raise ConfigError(
                f"has other classes or another preparation than {first.file}",
                file=model.file,
                fix="name models of one experiment, or one alone",
            )
    return models


def _file(path: Path) -> Path:
    if path.is_file():
        return path
    for name in _NAMES:
        if (path / "models" / f"{name}.safetensors").is_file():
            return path / "models" / f"{name}.safetensors"
    raise ConfigError(
        "is no model and no run's folder with one", file=path, fix="name models/best.safetensors"
    )
