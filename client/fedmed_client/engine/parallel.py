"""A site's training in several processes, each with a GPU of its own: started here by torchrun, carried out in ``member``.

What a process needs lies as files in a folder below the site's own, which is removed afterwards: the order's text, the site, and
parameters as safetensors. Each opens the site's cohort from its cache. All of them end with this one, and an order that is left
ends them.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import Popen
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict
from safetensors.numpy import load_file, save_file

from fedmed_client.train import Update
from fedmed_client.workbench import SiteHome, experiment_of
from fedmed_common import children
from fedmed_common.errors import ConfigError, WorkerLost
from fedmed_common.metrics import Mean
from fedmed_common.params import Parameters

START, UPDATE, ASSIGNMENT, RESULT, PROGRESS = (
    "start.safetensors",
    "update.safetensors",
    "assignment.json",
    "result.json",
    "step",
)
_PREFIX = ".team-"
_LOOPBACK = "lo" if sys.platform == "linux" else "lo0"
_ENVIRONMENT = {"GLOO_SOCKET_IFNAME": _LOOPBACK, "NCCL_SOCKET_IFNAME": _LOOPBACK}
_LOOK_SECONDS = 0.1
_GRACE_SECONDS = 10.0


class Assignment(BaseModel):
    """What every member reads. ``entropy``: of the round's randomness, as ``workbench.seed_for`` makes it."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    order: str
    site: dict[str, Any]
    home: str
    round: int
    entropy: tuple[int, ...]


class Result(BaseModel):
    """What the first member writes beside the update: its mean loss, as a sum and its weight."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    total: float
    weight: float


def train_together(
    home: SiteHome,
    order: str,
    start: Parameters,
    round_number: int,
    seed: np.random.SeedSequence,
    on_step: Callable[[int], None],
) -> Update:
    """``train.train`` in ``train.processes`` processes. ``on_step`` hears of the first one's steps; it may raise to end all.

    Raises:
        ConfigError: accelerate is not installed, or the cohort is one that only this process has.
        WorkerLost: a process ended before its time; what it said is in the message and in this process's output.
    """
    _check(home)
    processes = experiment_of(order).train.processes
    home.folder.mkdir(parents=True, exist_ok=True)
    for left_over in home.folder.glob(f"{_PREFIX}*"):
        shutil.rmtree(left_over, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=_PREFIX, dir=home.folder) as name:
        folder = Path(name)
        assignment = Assignment(
            order=order,
            site=home.site.model_dump(mode="json", exclude={"network"}),
            home=str(home.folder),
            round=round_number,
            entropy=tuple(seed.entropy),  # type: ignore[arg-type]
        )
        (folder / ASSIGNMENT).write_text(assignment.model_dump_json())
        save_file(start, folder / START)
        process = children.start(_command(folder, processes), environment=_ENVIRONMENT)
        try:
            _watch(process, folder, on_step)
        finally:
            children.stop(process, _GRACE_SECONDS)
        return _update(process.returncode, folder)


def _command(folder: Path, processes: int) -> list[str]:
    """torchrun on this machine alone; one process that ends ends all, and none is started again."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--max-restarts=0"]
    return [*launcher, f"--nproc-per-node={processes}", "-m", "fedmed_client.engine.member", str(folder)]


def _check(home: SiteHome) -> None:
    from importlib.util import find_spec

    if find_spec("accelerate") is None:
        raise ConfigError(
            "several processes need accelerate, which is not installed",
            field="train.processes",
            fix="pip install 'fedmed[multigpu]', or set train.processes = 1",
        )
    if home.open is not None:
        raise ConfigError(
            "a drawn partition or a pooled baseline has its patients in one process only",
            field="train.processes",
            fix="set train.processes = 1, or leave simulation.partition and the baseline out",
        )


def _watch(process: Popen[bytes], folder: Path, on_step: Callable[[int], None]) -> None:
    """Until the launcher ends, tell of each step that the first member has noted."""
    told = 0
    while process.poll() is None:
        step = _noted(folder)
        if step > told:
            told = step
            on_step(step)
        time.sleep(_LOOK_SECONDS)


def _noted(folder: Path) -> int:
    try:
        return int((folder / PROGRESS).read_text() or 0)
    except (OSError, ValueError):
        return 0


def _update(code: int, folder: Path) -> Update:
    errors = sorted(folder.glob("error-*.txt"))
    if code != 0 or not (folder / RESULT).is_file():
        said = errors[0].read_text(errors="replace") if errors else "it left no word"
        raise WorkerLost(f"a process that shares the training ended (torchrun: {code}): {said}")
    result = Result.model_validate_json((folder / RESULT).read_text())
    return Update(delta=load_file(folder / UPDATE), loss=Mean(result.total, result.weight))
