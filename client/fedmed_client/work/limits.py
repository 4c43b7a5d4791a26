"""What an order may take of the site's machine: when, how much disk and memory, which GPU."""

from __future__ import annotations

import os
import resource
import shutil
from collections.abc import Mapping
from datetime import datetime, time
from pathlib import Path

from fedmed_common.errors import PolicyRefusal
from fedmed_common.site_config import Device, Limits, Schedule, Site

_GB = 10**9
_VISIBLE = "CUDA_VISIBLE_DEVICES"


def check_now(site: Site, folder: Path, now: datetime | None = None) -> None:
    """Refuse an order that this machine cannot take now, and may take later. ``now``: local time.

    Raises:
        PolicyRefusal: ``window`` or ``disk``.
    """
    moment = (now or datetime.now()).time()
    if not is_open(site.schedule, moment):
        raise PolicyRefusal("window", f"the site works from {site.schedule.window}; it is {moment:%H:%M}")
    free = shutil.disk_usage(folder).free / _GB
    if free < site.limits.least_free_gb:
        raise PolicyRefusal("disk", f"{free:.1f} GB are free; {site.limits.least_free_gb:g} are required")


def is_open(schedule: Schedule, moment: time) -> bool:
    """Whether the site takes orders at this time of the day; a window may go over midnight."""
    if schedule.hours is None:
        return True
    begin, end = schedule.hours
    return begin <= moment < end if begin < end else moment >= begin or moment < end


def limit_memory(limits: Limits) -> None:
    """Hold this process to ``memory_gb``: what is more fails as an error inside the order, and harms nothing else.

    What is limited is memory of the process's own. Files that it maps, as the cohort's arrays, do not count.
    """
    if limits.memory_gb is not None:
        size = int(limits.memory_gb * _GB)
        resource.setrlimit(resource.RLIMIT_DATA, (size, size))


def visible_gpu(device: Device, environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Variables with which a process sees the GPUs that the site gives, one for each of its processes, or none.

    ``auto`` takes the first of those that ``environment`` leaves visible.
    """
    if device.gpu == "none":
        return {_VISIBLE: ""}
    if device.gpu == "auto":
        there = environment.get(_VISIBLE, ",".join(map(str, range(device.processes)))).split(",")
        return {_VISIBLE: ",".join(there[: device.processes])}
    return {_VISIBLE: device.gpu}
