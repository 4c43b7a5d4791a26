"""One of the processes that share a site's training: ``python -m fedmed_client.engine.member FOLDER``, started by ``crew``.

Accelerate keeps the network's copies equal (DistributedDataParallel), over NCCL between GPUs and gloo between CPUs. With
``parallel = "fsdp"`` torch's own ``fully_shard`` (FSDP2) shards parameters, gradients and optimizer state, also on CPUs, where
accelerate shards nothing. Between orders a process waits with its network, its cohorts and its line to the others as they are.
"""

from __future__ import annotations

import copy
import os
import socket
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from torch import Tensor, distributed, nn

from fedmed_client.engine import assignment
from fedmed_client.engine.assignment import Assignment, Said, Trained
from fedmed_client.engine.memory import stages
from fedmed_client.engine.team import Team
from fedmed_client.method import Method, Result, in_full
from fedmed_client.workbench import COHORTS, SiteHome, bench_for, experiment_of, numerics
from fedmed_common import logs, params, wire
from fedmed_common.config import Site
from fedmed_common.errors import Interrupted, PolicyRefusal
from fedmed_common.params import Parameters
from fedmed_common.transfer import hold_statistics

_MEETING = "meeting"


class Processes(Team):
    """The members as accelerate joins them, and one experiment's network among them. ``sharded``: no process keeps all of it."""

    def __init__(self, accelerator: Accelerator, *, sharded: bool) -> None:
        self._accelerator, self._sharded = accelerator, sharded
        self._prepared: nn.Module | None = None
        self._entire: nn.Module | None = None
        self.rank, self.size = accelerator.process_index, accelerator.num_processes

    def load(self, parameters: Parameters, network: nn.Module) -> None:
        if self._entire is None:
            params.to_model(parameters, network)
            return
        params.to_model(parameters, self._entire)
        entire = self._entire.state_dict()
        with torch.no_grad():
            for name, tensor in network.state_dict().items():
                tensor.copy_(_like(entire[name], tensor))

    def prepared(self, network: nn.Module) -> nn.Module:
        if self._prepared is None:
            network = in_step(network)
            self._prepared = self._in_parts(network) if self._sharded else self._copied(network)
        return self._prepared

    def _copied(self, network: nn.Module) -> nn.Module:
        wrapped: nn.Module = self._accelerator.prepare_model(network)
        self._accelerator.free_memory()  # it would hold on to each experiment's network
        return wrapped

    def _in_parts(self, network: nn.Module) -> nn.Module:
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


def _like(whole: Tensor, tensor: Any) -> Tensor:
    """A whole tensor, which every process has, cut as another one is."""
    if not hasattr(tensor, "device_mesh"):
        return whole
    from torch.distributed.tensor import distribute_tensor

    on_mesh = whole.to(tensor.device)
    return distribute_tensor(on_mesh, tensor.device_mesh, tensor.placements, src_data_rank=None)


def serve(line: socket.socket, folder: Path) -> None:
    """Carry out assignments until the line closes."""
    parent = os.getppid()
    accelerator: Accelerator | None = None
    for text in line.makefile("r", encoding="utf-8"):
        asked = Assignment.model_validate_json(text)
        accelerator = accelerator or _meet(folder, gpu=asked.gpu)
        team = _team_for(asked.experiment, accelerator)

        def on_step(step: int, rank: int = team.rank) -> None:
            if rank == 0:
                _say(line, Said(step=step))
            if os.getppid() != parent:
                raise Interrupted("the process that asked for this training is gone")

        _say(line, Said(trained=carry_out(asked, team, on_step)))
        if asked.gpu:
            torch.cuda.empty_cache()  # the process that asked measures the network on the same GPU


def carry_out(asked: Assignment, team: Team, on_step: Callable[[int], None]) -> Trained:
    """Train on this process's part of each batch; the first one writes the arrays that come of it."""
    home = SiteHome(site=Site.model_validate(asked.site), folder=Path(asked.home))
    cohort, sampler = COHORTS.get(home, asked.experiment)
    if sampler is None:
        raise PolicyRefusal("least_patients", "the site has no training patients")
    bench = bench_for(asked.experiment, gpu=asked.gpu)
    arrays = assignment.read(Path(asked.arrays), asked.names)
    order = wire.Order(
        kind=wire.Kind.TRAIN,
        run=asked.run,
        round=asked.round,
        attempt=0,
        experiment=asked.experiment,
        parameters=arrays["parameters"],
        down=arrays["down"],
    )
    method = Method.of(home, bench, order, cohort, sampler)
    with numerics(bench.experiment, bench.device, asked.threads):
        result = method.train(home.site.name, in_full(method, on_step, team))
    return _written(result, Path(asked.result), team)


def _written(result: Result, file: Path, team: Team) -> Trained:
    update, left = result.update, result.left
    groups = {"delta": update.delta, "sums": left.sums, "memory": left.memory}
    return Trained(
        total=update.loss.total,
        weight=update.loss.weight,
        waited=update.waited,
        scalars=dict(left.scalars),
        names=assignment.write(file, groups) if team.rank == 0 else {},
    )


@lru_cache(maxsize=2)
def _team_for(experiment: str, accelerator: Accelerator) -> Processes:
    """The team of an experiment, kept as long as its bench is."""
    return Processes(accelerator, sharded=experiment_of(experiment).train.parallel == "fsdp")


def _meet(folder: Path, *, gpu: bool) -> Accelerator:
    """Join the others, who are found by a file: no port is opened for that."""
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if gpu:
        torch.cuda.set_device(rank)
    distributed.init_process_group(
        "nccl" if gpu else "gloo", init_method=f"file://{folder / _MEETING}", rank=rank, world_size=size
    )
    unused = DistributedDataParallelKwargs(find_unused_parameters=True)
    return Accelerator(cpu=not gpu, kwargs_handlers=[unused])


def _say(line: socket.socket, said: Said) -> None:
    line.sendall(said.model_dump_json(exclude_defaults=True).encode() + b"\n")


def main() -> None:
    """Serve the process whose socket is the standard input; what goes wrong is told there."""
    os.umask(0o077)
    logs.set_up()
    line = socket.socket(fileno=0)
    code = 0
    try:
        serve(line, Path(sys.argv[1]))
    except BaseException as error:
        code = 1
        said = Said(error="".join(traceback.format_exception(error)), at=time.monotonic_ns())
        try:
            _say(line, said)
        except OSError:
            code = 2
    os._exit(code)


if __name__ == "__main__":
    main()
