"""What passes between the process that has an order and those that share its training: lines of JSON, and arrays in files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from safetensors.numpy import load_file, save_file

Names = dict[str, tuple[str, ...]]
"""By group, the names of arrays in the order that they had: a file has an order of its own."""
Groups = dict[str, dict[str, NDArray[Any]]]


class Assignment(BaseModel):
    """A training order as every member reads it. ``arrays``: a file with its ``parameters`` and ``down``; ``result``: where the
    first member writes what comes of it."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    experiment: str
    run: str
    round: int
    site: dict[str, Any]
    home: str
    gpu: bool
    threads: int
    arrays: str
    names: Names
    result: str


class Trained(BaseModel):
    """What a member has when it is done: of ``method.Result`` the numbers, and the ``names`` of its arrays: ``delta``, ``sums``
    and ``memory``."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    total: float
    weight: float
    waited: float
    scalars: dict[str, float]
    names: Names


class Said(BaseModel):
    """A member's line: a step is done, all of them are, or it fails. ``at``: nanoseconds of a clock that all processes share."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    step: int = 0
    trained: Trained | None = None
    error: str = ""
    at: int = 0


def write(file: Path, groups: Mapping[str, Mapping[str, NDArray[Any]]]) -> Names:
    """Write named arrays of several groups into one file."""
    flat = {
        f"{group}/{name}": np.asarray(a, order="C") for group in groups for name, a in groups[group].items()
    }
    save_file(flat, file)
    return {group: tuple(arrays) for group, arrays in groups.items()}


def read(file: Path, names: Names) -> Groups:
    """The groups that were written, in the order of their names."""
    flat = load_file(file)
    return {group: {name: flat[f"{group}/{name}"] for name in inside} for group, inside in names.items()}
