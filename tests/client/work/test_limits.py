"""What an order may take of the machine: its hours, its disk, its memory, its GPU."""

from __future__ import annotations

import subprocess
import sys
from datetime import datetime, time
from pathlib import Path

import pytest
from pydantic import ValidationError

from fedmed_client.work.limits import check_now, is_open, visible_gpu
from fedmed_common.config import Site
from fedmed_common.errors import PolicyRefusal
from fedmed_common.site_config import Device, Schedule


def _site(**tables: object) -> Site:
    return Site.model_validate(
        {"name": "alpha", "data": {"format": "images", "root": "/x"}, "labels": {}, **tables}
    )


@pytest.mark.parametrize(
    ("window", "moment", "expected"),
    [
        ("20:00-06:00", time(20, 0), True),
        ("20:00-06:00", time(23, 59), True),
        ("20:00-06:00", time(0, 0), True),
        ("20:00-06:00", time(5, 59, 59), True),
        ("20:00-06:00", time(6, 0), False),
        ("20:00-06:00", time(19, 59), False),
        ("12:30-13:30", time(12, 29), False),
        ("12:30-13:30", time(13, 29), True),
        (None, time(3, 0), True),
    ],
)
def test_a_window_may_go_over_midnight(window: str | None, moment: time, expected: bool) -> None:
    assert is_open(Schedule(window=window), moment) is expected


@pytest.mark.parametrize("window", ["20-6", "24:00-06:00", "20:00-20:00", "20:00", "20:00-06:00 ", ""])
def test_a_window_that_is_none_is_refused(window: str) -> None:
    with pytest.raises(ValueError, match="two different times"):
        Schedule(window=window)


def test_outside_its_hours_and_without_space_a_site_asks_to_wait(tmp_path: Path) -> None:
    night = _site(schedule={"window": "20:00-06:00"}, limits={"least_free_gb": 0})
    check_now(night, tmp_path, datetime(2026, 1, 1, 22, 0))
    with pytest.raises(PolicyRefusal) as closed:
        check_now(night, tmp_path, datetime(2026, 1, 1, 12, 0))
    with pytest.raises(PolicyRefusal) as full:
        check_now(_site(limits={"least_free_gb": 1e9}), tmp_path)
    assert (closed.value.rule, full.value.rule) == ("window", "disk")


def test_memory_beyond_the_limit_is_an_error_inside(tmp_path: Path) -> None:
    script = (
        "from fedmed_client.work.limits import limit_memory\n"
        "from fedmed_common.site_config import Limits\n"
        "limit_memory(Limits(memory_gb=0.5))\n"
        "bytes(100_000_000)\n"
        "try:\n    bytes(1_000_000_000)\nexcept MemoryError:\n    raise SystemExit(7)\n"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 7


@pytest.mark.parametrize(
    ("gpu", "environment", "seen"),
    [
        ("none", {"CUDA_VISIBLE_DEVICES": "0"}, ""),
        ("auto", {}, "0"),
        ("auto", {"CUDA_VISIBLE_DEVICES": "3,1"}, "3"),
        ("auto", {"CUDA_VISIBLE_DEVICES": ""}, ""),
        ("2", {"CUDA_VISIBLE_DEVICES": "0,1"}, "2"),
        ("GPU-8932f937", {}, "GPU-8932f937"),
    ],
)
def test_the_process_that_trains_sees_one_gpu_or_none(
    gpu: str, environment: dict[str, str], seen: str
) -> None:
    assert visible_gpu(Device(gpu=gpu), environment) == {"CUDA_VISIBLE_DEVICES": seen}


@pytest.mark.parametrize(
    ("environment", "seen"),
    [({}, "0,1,2"), ({"CUDA_VISIBLE_DEVICES": "3,1"}, "3,1"), ({"CUDA_VISIBLE_DEVICES": "7,5,3,1"}, "7,5,3")],
)
def test_each_of_several_processes_sees_a_gpu_of_its_own(environment: dict[str, str], seen: str) -> None:
    assert visible_gpu(Device(processes=3), environment) == {"CUDA_VISIBLE_DEVICES": seen}


def test_one_gpu_is_not_enough_for_two_processes() -> None:
    with pytest.raises(ValidationError, match="processes = 2 need as many GPUs; gpu '1' is one"):
        Device(gpu="1", processes=2)
