"""Where the sites of a simulation work, and what of the machines they take. Imports no network library."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fedmed_common.errors import ConfigError

Engine = Literal["inline", "process", "ray"]
ENGINE_HELP = "inline: this process. process: worker processes on this machine. ray: a Ray cluster."
WORKERS_HELP = (
    "Of the engines process and ray: sites at work at once. 0: as many as cores and GPUs are there for."
)
ADDRESS_HELP = (
    "Of the engine ray: a running cluster, as 'auto' on its head node. Absent: Ray starts on this machine."
)
ADDRESS_VARIABLE = "RAY_ADDRESS"


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """``workers``: sites at work at once; 0: as many as fit. ``address``: of a running Ray cluster; '': one of the run's own."""

    workers: int = 0
    address: str = ""


ANY = Resources()


def check_resources(engine: Engine, resources: Resources) -> None:
    """Raises :class:`ConfigError` where the engine cannot have these."""
    if engine == "inline" and resources.workers:
        raise ConfigError(
            "the inline engine has no workers",
            field="--workers",
            fix="leave it out, or take --engine process",
        )
