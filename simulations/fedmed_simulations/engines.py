"""Where the sites of a simulation work: in this process, in others of this machine, or on a Ray cluster. The app is the same."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

from fedmed_client.workbench import COHORTS, SiteHome
from fedmed_common import wire
from fedmed_common.cli import ENVIRONMENT
from fedmed_common.config import Experiment
from fedmed_common.errors import ConfigError
from fedmed_common.processes import cores
from fedmed_server.app import RunRequest, run_federation
from fedmed_server.region import Region, app_of_regions
from fedmed_simulations.grid import FIRST_NODE, LocalGrid, app_of
from fedmed_simulations.resources import ANY, Engine, Resources
from fedmed_simulations.workers.grid import Settings, WorkersGrid

_SLOW_TIMES = 4.0
_CLUSTER_PATIENCE_SECONDS = 1800.0
_VISIBLE = "CUDA_VISIBLE_DEVICES"


def run_inline(homes: Sequence[SiteHome], request: RunRequest, resources: Resources = ANY) -> None:
    """All sites in this process, one after the other; model and mapped data stay warm. They may be dealt to regions.

    Raises:
        ConfigError: too few sites for so many regions.
    """
    simulation = request.experiment.simulation
    if simulation is not None and simulation.regions:
        regions = deal(homes, simulation.regions, request)
        request = replace(request, sites=len(regions), regional=True)
        run_federation(LocalGrid(app_of_regions(regions), len(regions)), request)
    else:
        run_federation(LocalGrid(app_of(homes), len(homes)), request)


def deal(homes: Sequence[SiteHome], regions: int, request: RunRequest) -> list[Region]:
    """So many regions, each with as many of the sites, in the order of their names, as the others, or one less.

    Raises:
        ConfigError: a region has fewer than ``federation.minimum_sites``.
    """
    by_name = sorted(homes, key=lambda home: home.site.name)
    ends = [len(by_name) * number // regions for number in range(regions + 1)]
    groups = [by_name[begin:end] for begin, end in pairwise(ends)]
    noised = next((home.site.name for home in by_name if home.site.policy.held_out == "noised"), None)
    if noised is not None:
        raise ConfigError(
            f"site '{noised}' puts noise on what it measures (policy.held_out), which has no place in its region's sum",
            field="simulation.regions",
            fix="set the policy to 'measured' or 'kept', or leave simulation.regions out",
        )
    fewest, wanted = min(map(len, groups)), request.experiment.federation.minimum_sites
    if fewest < wanted:
        raise ConfigError(
            f"{len(homes)} sites in {regions} regions leave {fewest} in one, and federation.minimum_sites is {wanted}",
            field="simulation.regions",
            fix="ask for fewer regions",
        )
    return [
        Region(
            name=f"region-{number:0{len(str(regions))}}",
            grid=LocalGrid(app_of(group), len(group)),
            sites=len(group),
            watch=request.watch,
            stop=request.stop,
        )
        for number, group in enumerate(groups, 1)
    ]


def run_process(homes: Sequence[SiteHome], request: RunRequest, resources: Resources = ANY) -> None:
    """Several sites at once, each in a worker process with ``train.threads`` cores (0: its share), and a GPU where there are any.

    Raises:
        WorkerLost: an order has cost several workers, or none can be started.
    """
    with process_grid(homes, request, resources) as grid:
        run_federation(grid, request)


def process_grid(homes: Sequence[SiteHome], request: RunRequest, resources: Resources = ANY) -> WorkersGrid:
    """The grid of such a run, to be entered."""
    from fedmed_simulations.workers.processes import ProcessCrew

    experiment = request.experiment
    _refuse_regions(experiment)
    gpus = _gpus_here(experiment)
    by_cores = cores() // max(experiment.train.threads, experiment.train.processes)
    fit = int(len(gpus) / _gpus_of_a_site(experiment)) if gpus else by_cores
    workers = min(resources.workers or max(fit, 1), len(homes))
    threads = experiment.train.threads or max(cores() // workers, 1)
    seats = [
        {"OMP_NUM_THREADS": str(threads), **_seen(gpus, number, experiment)} for number in range(workers)
    ]
    hire = partial(ProcessCrew, homes=_held_to(homes, threads), seats=seats)
    return WorkersGrid(hire, _settings(homes, request, workers))


def run_ray(homes: Sequence[SiteHome], request: RunRequest, resources: Resources = ANY) -> None:
    """Several sites at once, each in a Ray actor with ``train.threads`` cores (0: one), and GPUs where the cluster has any.

    Raises:
        ConfigError: Ray is not installed, the cluster cannot be reached, or none of its machines has what a site takes.
        WorkerLost: an order has cost several workers, or none can be started.
    """
    _refuse_regions(request.experiment)
    with _cluster(resources.address) as ray:
        from fedmed_simulations.workers.ray_actors import RayCrew

        experiment = request.experiment
        threads, device = experiment.train.threads or 1, experiment.train.device
        cpus = max(threads, experiment.train.processes)
        has_gpus = ray.cluster_resources().get("GPU", 0) > 0 if device == "auto" else device != "cpu"
        gpus = _gpus_of_a_site(experiment) if has_gpus else 0.0
        workers = min(resources.workers or _fitting(ray.nodes(), cpus, gpus), len(homes))
        hire = partial(RayCrew, homes=_held_to(homes, threads), folder=request.folder, cpus=cpus, gpus=gpus)
        settings = replace(
            _settings(homes, request, workers),
            slow_times=_SLOW_TIMES,
            patience_seconds=_CLUSTER_PATIENCE_SECONDS,
        )
        with WorkersGrid(hire, settings) as grid:
            run_federation(grid, request)


ENGINES: dict[Engine, Callable[[Sequence[SiteHome], RunRequest, Resources], None]] = {
    "inline": run_inline,
    "process": run_process,
    "ray": run_ray,
}


def _refuse_regions(experiment: Experiment) -> None:
    if experiment.simulation is not None and experiment.simulation.regions:
        raise ConfigError(
            "regions answer one after the other, in one process",
            field="simulation.regions",
            fix="use the engine inline, or leave it out",
        )


def _settings(homes: Sequence[SiteHome], request: RunRequest, workers: int) -> Settings:
    nodes = dict(enumerate(homes, FIRST_NODE))
    sizes = {node: _sizes(home, request.experiment) for node, home in nodes.items()}
    return Settings(
        workers=workers,
        names={node: home.site.name for node, home in nodes.items()},
        size=lambda node, kind: sizes[node].get(kind, sizes[node][""]),
        on_step=lambda node, step: nodes[node].on_step(nodes[node].site.name, step),
        stop=request.stop,
    )


def _sizes(home: SiteHome, experiment: Experiment) -> dict[str, float]:
    """What a site has to do by kind of order: steps of training, cases to measure, for all other kinds cases to look at."""
    cohort, _ = COHORTS.get(home, experiment.order_text())
    return {
        wire.Kind.TRAIN: experiment.train.steps_of(cohort.patients("train")),
        wire.Kind.EVALUATE: sum(case.split != "train" for case in cohort.cases),
        "": len(cohort.cases),
    }


def _held_to(homes: Sequence[SiteHome], threads: int) -> list[SiteHome]:
    """The sites with no more threads than a worker has: also where the experiment leaves their number open."""
    held = []
    for home in homes:
        own = home.site.device
        device = own.model_copy(update={"threads": min(own.threads or threads, threads)})
        held.append(replace(home, site=home.site.model_copy(update={"device": device})))
    return held


def _gpus_of_a_site(experiment: Experiment) -> float:
    if experiment.train.processes > 1 or experiment.simulation is None:
        return float(experiment.train.processes)
    return experiment.simulation.gpus_per_site


def _gpus_here(experiment: Experiment) -> list[str]:
    """The GPUs of this machine as a process names them, where the experiment may use any of them."""
    import torch

    if experiment.train.device == "cpu" or not torch.cuda.is_available():
        return []
    there = os.environ.get(_VISIBLE) or ",".join(map(str, range(torch.cuda.device_count())))
    return there.split(",")


def _seen(gpus: Sequence[str], number: int, experiment: Experiment) -> Mapping[str, str]:
    """Which GPUs a worker sees: the next ones in turn. All, where the experiment names the one to take."""
    if not gpus or ":" in experiment.train.device:
        return {}
    processes = experiment.train.processes
    return {_VISIBLE: ",".join(gpus[(number * processes + k) % len(gpus)] for k in range(processes))}


def _fitting(nodes: Sequence[Mapping[str, Any]], cpus: int, gpus: float) -> int:
    """How many sites the machines of a cluster can take at once.

    Raises:
        ConfigError: none.
    """
    fit = 0
    for there in (node["Resources"] for node in nodes if node["Alive"]):
        by_cpus = int(there.get("CPU", 0) // cpus)
        fit += min(by_cpus, int(there.get("GPU", 0) / gpus)) if gpus else by_cpus
    if not fit:
        raise ConfigError(
            f"no machine of the Ray cluster has the {cpus} cores and {gpus:g} GPUs that a site takes",
            field="train.threads",
            fix="ask for less, or, where machines are added on demand, say how many sites work at once: --workers",
        )
    return fit


@contextmanager
def _cluster(address: str) -> Iterator[Any]:
    """Ray, connected to the cluster at the address, or to one that lasts as long as this.

    Raises:
        ConfigError: Ray is not installed, or nothing answers there.
    """
    for variable, value in ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
    try:
        import ray
    except ImportError:
        raise ConfigError("the ray engine needs Ray", fix="pip install 'fedmed[ray]'") from None
    own: dict[str, Any] = {"address": address, "logging_level": logging.WARNING}
    if not address:
        own = {"address": "local", "logging_level": logging.ERROR, "num_cpus": cores()}
        own |= {"include_dashboard": False, "_node_ip_address": "127.0.0.1"}
    try:
        ray.init(runtime_env={"env_vars": {name: os.environ[name] for name in ENVIRONMENT}}, **own)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"Ray does not start: {error}" if not address else f"no Ray cluster at '{address}': {error}",
            field="--ray-address",
            fix="run the command on a machine of the cluster, with RAY_AUTH_MODE=token where the others have it; "
            "'ray status' tells whether it is up",
        ) from None
    try:
        yield ray
    finally:
        ray.shutdown()
