"""A site's training in several processes, each with a GPU of its own: started here, carried out in ``member``.

What a process needs lies as files in a folder below the site's own, which is removed afterwards: the order's text, the site, and
parameters as safetensors. There the processes also find each other; they speak over the loopback address, and no port is opened
for others. Each opens the site's cohort from its cache. Where one ends before its time, or the order is left, all are ended.
"""

from __future__ import annotations

import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from subprocess import Popen
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from safetensors.numpy import load_file, save_file
from torch.nn.modules.batchnorm import _BatchNorm

from fedmed_client.train import Update
from fedmed_client.workbench import Bench, SiteHome, bench_for
from fedmed_common import children
from fedmed_common.errors import ConfigError, WorkerLost
from fedmed_common.metrics import Mean
from fedmed_common.params import Parameters
from fedmed_common.processes import cores

START, UPDATE, ASSIGNMENT, RESULT, PROGRESS, MEETING = (
    "start.safetensors",
    "update.safetensors",
    "assignment.json",
    "result.json",
    "step",
    "meeting",
)
_FIELD = "train.processes"
_PREFIX = ".team-"
_LOOPBACK = "lo" if sys.platform == "linux" else "lo0"
_LOOK_SECONDS = 0.1
_GRACE_SECONDS = 5.0

Members = Sequence[Popen[bytes]]


class Assignment(BaseModel):
    """What every member reads. ``entropy``: of the round's randomness, as ``workbench.seed_for`` makes it."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    order: str
    site: dict[str, Any]
    home: str
    round: int
    entropy: tuple[int, ...]
    gpu: bool


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
        ConfigError: this machine, this network or this cohort cannot be shared by several processes.
        WorkerLost: a process ended before its time; what it said is in the message.
    """
    bench = bench_for(order, gpu=home.site.device.gpu != "none")
    _check(home, bench)
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
            gpu=bench.device.type == "cuda",
        )
        (folder / ASSIGNMENT).write_text(assignment.model_dump_json())
        save_file(start, folder / START)
        members: list[Popen[bytes]] = []
        try:
            for environment in _environments(bench, home.site.device.threads):
                members.append(_start(folder, environment))
            _watch(members, folder, on_step)
        finally:
            _end(members)
        result = Result.model_validate_json((folder / RESULT).read_text())
        delta = load_file(folder / UPDATE)  # the file has an order of its own
        return Update(
            delta={name: delta[name] for name in start if name in delta},
            loss=Mean(result.total, result.weight),
        )


def _environments(bench: Bench, most_threads: int) -> list[dict[str, str]]:
    """Of each process: who it is among how many, as accelerate reads it, and its share of the site's threads."""
    settings = bench.experiment.train
    wanted = settings.threads or cores()
    threads = max(1, min(wanted, most_threads or wanted) // settings.processes)
    return [
        {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(settings.processes),
            "LOCAL_WORLD_SIZE": str(settings.processes),
            "OMP_NUM_THREADS": str(threads),
            "TORCH_CPP_LOG_LEVEL": "ERROR",
            "GLOO_SOCKET_IFNAME": _LOOPBACK,
            "NCCL_SOCKET_IFNAME": _LOOPBACK,
        }
        for rank in range(settings.processes)
    ]


def _start(folder: Path, environment: dict[str, str]) -> Popen[bytes]:
    """A group of its own gets no Ctrl-C of this terminal: this process says when it ends."""
    command = [sys.executable, "-m", "fedmed_client.engine.member", str(folder)]
    return children.start(command, environment=environment, own_group=True)


def _check(home: SiteHome, bench: Bench) -> None:
    processes = bench.experiment.train.processes
    alone = "set train.processes = 1"
    if find_spec("accelerate") is None:
        raise ConfigError(
            "several processes need accelerate, which is not installed",
            field=_FIELD,
            fix=f"pip install 'fedmed[multigpu]', or {alone}",
        )
    if home.open is not None:
        raise ConfigError(
            "a drawn partition or a pooled baseline has its patients in one process only",
            field=_FIELD,
            fix=f"{alone}, or leave simulation.partition and the baseline out",
        )
    if hasattr(bench.model, "objective_extra"):
        raise ConfigError(
            "this network adds to its own loss, which works in one process only", field=_FIELD, fix=alone
        )
    if bench.device.type == "cuda":
        there = torch.cuda.device_count()
        if there < processes:
            raise ConfigError(f"{processes} need as many GPUs; {there} are there", field=_FIELD, fix=alone)
    elif any(isinstance(module, _BatchNorm) for module in bench.model.modules()):
        raise ConfigError(
            "batch norms of several processes can be kept in step on GPUs only",
            field="model.norm",
            fix=f"use 'instance' or 'group', or {alone}",
        )


def _watch(members: Members, folder: Path, on_step: Callable[[int], None]) -> None:
    """Until all have ended, tell of each step that the first member has noted.

    Raises:
        WorkerLost: one has ended before its time.
    """
    told = 0
    while None in [member.poll() for member in members]:
        _check_ends(members, folder)
        step = _noted(folder)
        if step > told:
            told = step
            on_step(step)
        time.sleep(_LOOK_SECONDS)
    _check_ends(members, folder)


def _check_ends(members: Members, folder: Path) -> None:
    """A process that was killed is the cause when another has failed for want of it."""
    codes = [member.returncode or 0 for member in members]
    for rank, code in enumerate(codes):
        if code < 0:
            name = signal.Signals(-code).name
            raise WorkerLost(
                f"process {rank + 1} of {len(codes)} that shared the training was ended by {name}"
            )
    words = {rank: folder / f"error-{rank}.txt" for rank, code in enumerate(codes) if code}
    if words:
        there = [rank for rank, file in words.items() if file.is_file()]
        rank = min(there, key=lambda rank: words[rank].stat().st_mtime_ns, default=min(words))
        said = words[rank].read_text(errors="replace") if there else f"it left no word (code {codes[rank]})"
        raise WorkerLost(f"process {rank + 1} of {len(codes)} that shared the training failed: {said}")


def _end(members: Members) -> None:
    for member in members:
        if member.poll() is None:
            member.terminate()
    for member in members:
        children.stop(member, _GRACE_SECONDS)


def _noted(folder: Path) -> int:
    try:
        return int((folder / PROGRESS).read_text() or 0)
    except (OSError, ValueError):
        return 0
