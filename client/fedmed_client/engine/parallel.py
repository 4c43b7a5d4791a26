"""A site's training in several processes, each with a GPU of its own: handed over here, carried out in ``member``.

The processes are kept between orders (:mod:`fedmed_client.engine.crew`). What an order needs besides its text lies as
safetensors in a folder below the site's own, which is removed afterwards. Each process opens the site's cohort from its cache,
and reads what the recipe has kept there; this one writes it. Where one ends before its time, or the order is left, all are ended.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from fedmed_client.engine import assignment
from fedmed_client.engine.assignment import Assignment
from fedmed_client.engine.crew import CREWS
from fedmed_client.method import Result
from fedmed_client.train import Update
from fedmed_client.workbench import Bench, SiteHome, bench_for
from fedmed_common import wire
from fedmed_common.errors import ConfigError
from fedmed_common.metrics import Mean
from fedmed_common.processes import cores
from fedmed_strategies.pieces import Left

_FIELD = "train.processes"
_PREFIX = ".team-"
_ORDER, _RESULT = "order.safetensors", "result.safetensors"
_LOOPBACK = "lo" if sys.platform == "linux" else "lo0"


def train_together(home: SiteHome, order: wire.Order, on_step: Callable[[int], None]) -> Result:
    """``Method.train`` in ``train.processes`` processes. ``on_step`` hears of the first one's steps; it may raise to end all.

    Raises:
        ConfigError: this machine, this network or this cohort cannot be shared by several processes.
        WorkerLost: a process ended before its time; what it said is in the message.
    """
    bench = bench_for(order.experiment, gpu=home.site.device.gpu != "none")
    _check(home, bench)
    processes, gpu = bench.experiment.train.processes, bench.device.type == "cuda"
    threads = _threads(bench, home.site.device.threads)
    home.folder.mkdir(parents=True, exist_ok=True)
    for left_over in home.folder.glob(f"{_PREFIX}*"):
        shutil.rmtree(left_over, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=_PREFIX, dir=home.folder) as name:
        folder = Path(name)
        asked = Assignment(
            experiment=order.experiment,
            run=order.run,
            round=order.round,
            site=home.site.model_dump(mode="json", exclude={"network"}),
            home=str(home.folder.absolute()),
            gpu=gpu,
            threads=threads,
            arrays=str((folder / _ORDER).absolute()),
            names=assignment.write(folder / _ORDER, {"parameters": order.parameters, "down": order.down}),
            result=str((folder / _RESULT).absolute()),
        )
        trained = CREWS.get(_environments(processes, threads), gpu=gpu).carry_out(asked, on_step)
        found = assignment.read(folder / _RESULT, trained.names)
    loss = Mean(trained.total, trained.weight)
    return Result(
        update=Update(delta=found["delta"], loss=loss, waited=trained.waited),
        left=Left(sums=found["sums"], scalars=trained.scalars, memory=found["memory"]),
    )


def _threads(bench: Bench, most_threads: int) -> int:
    """Of each process: its share of the site's."""
    settings = bench.experiment.train
    wanted = settings.threads or cores()
    return max(1, min(wanted, most_threads or wanted) // settings.processes)


def _environments(processes: int, threads: int) -> list[dict[str, str]]:
    """Of each process: who it is among how many, as accelerate reads it, and the threads that it begins with."""
    return [
        {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(processes),
            "LOCAL_WORLD_SIZE": str(processes),
            "OMP_NUM_THREADS": str(threads),
            "TORCH_CPP_LOG_LEVEL": "ERROR",
            "GLOO_SOCKET_IFNAME": _LOOPBACK,
            "NCCL_SOCKET_IFNAME": _LOOPBACK,
        }
        for rank in range(processes)
    ]


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
