"""Where a simulated federation's sites work: in this process, or in Ray's workers. The apps are the same."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

from flwr.app import Context
from flwr.clientapp import ClientApp

from fedmed_client.app import make_client_app
from fedmed_client.workbench import SiteHome
from fedmed_common.errors import ConfigError
from fedmed_common.processes import cores
from fedmed_server.app import RunRequest, make_server_app, run_federation
from fedmed_simulations.grid import LocalGrid

Engine = Literal["inline", "ray"]


def run_inline(homes: Sequence[SiteHome], request: RunRequest) -> None:
    """All sites in this process, one after the other; model and mapped data stay warm."""
    run_federation(LocalGrid(_client_app(homes), len(homes)), request)


def run_ray(homes: Sequence[SiteHome], request: RunRequest) -> None:
    """Flower's simulation engine: sites in Ray's workers, each with ``train.threads`` cores (0: all), as many at once as fit.

    Raises:
        ConfigError: Ray is not installed.
    """
    try:
        import ray
    except ImportError:
        raise ConfigError("the ray engine needs Ray", fix="pip install 'fedmed[ray]'") from None
    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
    from flwr.simulation import run_simulation

    most = cores()
    threads = min(request.experiment.train.threads or most, most)
    quiet = [_without_watcher(home) for home in homes]
    try:
        run_simulation(
            server_app=make_server_app(request),
            client_app=_client_app(quiet),
            num_supernodes=len(homes),
            backend_config={
                "client_resources": {"num_cpus": threads, "num_gpus": _gpus(request)},
                "init_args": {"include_dashboard": False, "num_cpus": most},
            },
        )
    finally:
        request.stop.set()
        ray.shutdown()


ENGINES: dict[Engine, Callable[[Sequence[SiteHome], RunRequest], None]] = {
    "inline": run_inline,
    "ray": run_ray,
}


def _client_app(homes: Sequence[SiteHome]) -> ClientApp:
    return make_client_app(partial(_home_of, tuple(homes)))


def _home_of(homes: tuple[SiteHome, ...], context: Context) -> SiteHome:
    return homes[int(context.node_config["partition-id"])]


def _without_watcher(home: SiteHome) -> SiteHome:
    """The home without the progress display, which cannot follow it into another process."""
    return SiteHome(site=home.site, folder=home.folder, open=home.open)


def _gpus(request: RunRequest) -> float:
    import torch

    settings = request.experiment.train
    return float(settings.processes) if settings.device != "cpu" and torch.cuda.is_available() else 0.0
