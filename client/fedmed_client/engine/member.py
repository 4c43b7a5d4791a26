"""One of the processes that share a site's training: ``python -m fedmed_client.engine.member FOLDER``, started by torchrun.

Accelerate finds the device and joins the processes, NCCL between GPUs and gloo between CPUs, and keeps the network's copies equal
(DistributedDataParallel). ``parallel = "fsdp"`` shards parameters, gradients and optimizer state by torch's own ``fully_shard``
(FSDP2), also on CPUs, where accelerate shards nothing.
"""

from __future__ import annotations

import copy
import os
import sys
import traceback
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from safetensors.numpy import load_file, save_file
from torch import Tensor, nn

from fedmed_client.engine.memory import blocks
from fedmed_client.engine.parallel import ASSIGNMENT, PROGRESS, RESULT, START, UPDATE, Assignment, Result
from fedmed_client.engine.team import Team
from fedmed_client.train import train
from fedmed_client.workbench import COHORTS, SiteHome, bench_for, experiment_of, numerics
from fedmed_common import logs
from fedmed_common.config import Site
from fedmed_common.errors import ConfigError, Interrupted, PolicyRefusal
from fedmed_common.processes import cores
from fedmed_common.transfer import hold_statistics


class Processes(Team):
    """The members as accelerate joins them. ``sharded``: no process keeps the whole network."""

    def __init__(self, accelerator: Accelerator, *, sharded: bool) -> None:
        self._accelerator, self._sharded = accelerator, sharded
        self._entire: nn.Module | None = None
        self.rank, self.size = accelerator.process_index, accelerator.num_processes

    def prepared(self, network: nn.Module) -> nn.Module:
        _check(network)
        network = self._in_step(network)
        if not self._sharded:
            wrapped: nn.Module = self._accelerator.prepare_model(network)
            return wrapped
        from torch.distributed.fsdp import fully_shard

        self._entire = copy.deepcopy(network).cpu()
        for block in blocks(network):
            fully_shard(block)
        fully_shard(network)
        return network

    def collecting(self, network: nn.Module, *, last: bool) -> AbstractContextManager[None]:
        if last or self._sharded:
            return nullcontext()
        held: AbstractContextManager[None] = self._accelerator.no_sync(network)
        return held

    def mean(self, value: Tensor) -> Tensor:
        reduced: Tensor = self._accelerator.reduce(value.clone(), reduction="mean")
        return reduced

    def whole(self, network: nn.Module) -> nn.Module:
        if self._entire is None:
            return network
        state = {name: _full(tensor) for name, tensor in network.state_dict().items()}
        self._entire.load_state_dict(state)
        return self._entire

    def _in_step(self, network: nn.Module) -> nn.Module:
        """Batch norms that measure over all processes' parts together; torch has them for GPUs only."""
        if not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in network.modules()):
            return network
        if self._accelerator.device.type != "cuda":
            raise ConfigError(
                "batch norms of several processes can be kept in step on GPUs only",
                field="model.norm",
                fix="use 'instance' or 'group', or set train.processes = 1",
            )
        return in_step(network)


def in_step(network: nn.Module) -> nn.Module:
    """The network with synchronised batch norms in place of its own; one that is frozen goes on measuring nothing."""
    converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
    hold_statistics(converted)
    return converted


def _check(network: nn.Module) -> None:
    if hasattr(network, "objective_extra"):
        raise ConfigError(
            "this network adds to its own loss, which works in one process only",
            field="model.name",
            fix="set train.processes = 1",
        )


def _full(tensor: Any) -> Tensor:
    """A sharded tensor put together; every process must take part."""
    whole: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return whole.cpu()


def carry_out(folder: Path) -> None:
    """Train on this process's part of each batch; the first one writes the update and notes its steps."""
    launcher = os.getppid()
    assignment = Assignment.model_validate_json((folder / ASSIGNMENT).read_text())
    site = Site.model_validate(assignment.site)
    experiment = experiment_of(assignment.order)
    gpu = site.device.gpu != "none" and experiment.train.device != "cpu" and torch.cuda.is_available()
    accelerator = Accelerator(
        cpu=not gpu, kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)]
    )
    team = Processes(accelerator, sharded=experiment.train.parallel == "fsdp")
    _, sampler = COHORTS.get(SiteHome(site=site, folder=Path(assignment.home)), assignment.order)
    if sampler is None:
        raise PolicyRefusal("least_patients", "the site has no training patients")
    bench = bench_for(assignment.order, gpu=gpu)
    bench = replace(bench, device=accelerator.device, model=bench.model.to(accelerator.device))

    def on_step(step: int) -> None:
        if team.rank == 0:
            (folder / PROGRESS).write_text(str(step))
        if os.getppid() != launcher:
            raise Interrupted("the process that asked for this training is gone")

    threads = max(1, (site.device.threads or cores()) // team.size)
    with numerics(experiment, bench.device, threads):
        seed = np.random.SeedSequence(list(assignment.entropy))
        start = load_file(folder / START)
        update = train(bench, sampler, start, assignment.round, seed, on_step, team)
    if team.rank == 0:
        save_file({name: np.ascontiguousarray(a) for name, a in update.delta.items()}, folder / UPDATE)
        result = Result(total=update.loss.total, weight=update.loss.weight)
        (folder / RESULT).write_text(result.model_dump_json())
    accelerator.end_training()


def main() -> None:
    """Carry out what the folder on the command line holds; what goes wrong is left there, for the process that asked."""
    os.umask(0o077)
    logs.set_up()
    folder = Path(sys.argv[1])
    try:
        carry_out(folder)
    except BaseException as error:
        if folder.is_dir():
            text = "".join(traceback.format_exception(error))
            (folder / f"error-{os.environ.get('RANK', '0')}.txt").write_text(text)
        os._exit(1)


if __name__ == "__main__":
    main()
