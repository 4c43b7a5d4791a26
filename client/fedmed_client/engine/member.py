"""One of the processes that share a site's training: ``python -m fedmed_client.engine.member FOLDER``, started by ``parallel``.

Accelerate keeps the network's copies equal (DistributedDataParallel), over NCCL between GPUs and gloo between CPUs. With
``parallel = "fsdp"`` torch's own ``fully_shard`` (FSDP2) shards parameters, gradients and optimizer state, also on CPUs, where
accelerate shards nothing.
"""

from __future__ import annotations

import copy
import os
import sys
import traceback
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from safetensors.numpy import load_file, save_file
from torch import Tensor, distributed, nn

from fedmed_client.engine.memory import stages
from fedmed_client.engine.parallel import (
    ASSIGNMENT,
    MEETING,
    PROGRESS,
    RESULT,
    START,
    UPDATE,
    Assignment,
    Result,
)
from fedmed_client.engine.team import Team
from fedmed_client.train import Course, train
from fedmed_client.workbench import COHORTS, SiteHome, bench_for, experiment_of, numerics
from fedmed_common import logs
from fedmed_common.config import Site
from fedmed_common.errors import Interrupted, PolicyRefusal
from fedmed_common.transfer import hold_statistics


class Processes(Team):
    """The members as accelerate joins them. ``sharded``: no process keeps the whole network."""

    def __init__(self, accelerator: Accelerator, *, sharded: bool) -> None:
        self._accelerator, self._sharded = accelerator, sharded
        self._entire: nn.Module | None = None
        self.rank, self.size = accelerator.process_index, accelerator.num_processes

    def prepared(self, network: nn.Module) -> nn.Module:
        network = in_step(network)
        if not self._sharded:
            wrapped: nn.Module = self._accelerator.prepare_model(network)
            return wrapped
        from torch.distributed.fsdp import fully_shard

        self._entire = copy.deepcopy(network).cpu()
        for block in stages(network):
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


def in_step(network: nn.Module) -> nn.Module:
    """The network with batch norms that measure over all processes' parts together; a frozen one goes on measuring nothing."""
    if not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in network.modules()):
        return network
    converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
    hold_statistics(converted)
    return converted


def _full(tensor: Any) -> Tensor:
    """A sharded tensor put together; every process must take part."""
    whole: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return whole.cpu()


def carry_out(folder: Path) -> None:
    """Train on this process's part of each batch; the first one writes the update and notes its steps."""
    parent = os.getppid()
    assignment = Assignment.model_validate_json((folder / ASSIGNMENT).read_text())
    site = Site.model_validate(assignment.site)
    experiment = experiment_of(assignment.order)
    team = _meet(folder, gpu=assignment.gpu, sharded=experiment.train.parallel == "fsdp")
    _, sampler = COHORTS.get(SiteHome(site=site, folder=Path(assignment.home)), assignment.order)
    if sampler is None:
        raise PolicyRefusal("least_patients", "the site has no training patients")
    bench = bench_for(assignment.order, gpu=assignment.gpu)

    def on_step(step: int) -> None:
        if team.rank == 0:
            (folder / PROGRESS).write_text(str(step))
        if os.getppid() != parent:
            raise Interrupted("the process that asked for this training is gone")

    with numerics(experiment, bench.device, int(os.environ["OMP_NUM_THREADS"])):
        seed = np.random.SeedSequence(list(assignment.entropy))
        start = load_file(folder / START)
        update = train(bench, sampler, start, Course(round=assignment.round, seed=seed), on_step, team)
    if team.rank == 0:
        save_file({name: np.ascontiguousarray(a) for name, a in update.delta.items()}, folder / UPDATE)
        result = Result(total=update.loss.total, weight=update.loss.weight)
        (folder / RESULT).write_text(result.model_dump_json())
    distributed.barrier()
    distributed.destroy_process_group()


def _meet(folder: Path, *, gpu: bool, sharded: bool) -> Processes:
    """Join the others, who are found by a file: no port is opened for that."""
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if gpu:
        torch.cuda.set_device(rank)
    distributed.init_process_group(
        "nccl" if gpu else "gloo", init_method=f"file://{folder / MEETING}", rank=rank, world_size=size
    )
    unused = DistributedDataParallelKwargs(find_unused_parameters=True)
    return Processes(Accelerator(cpu=not gpu, kwargs_handlers=[unused]), sharded=sharded)


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
            (folder / f"error-{os.environ['RANK']}.txt").write_text(text)
        os._exit(1)


if __name__ == "__main__":
    main()
