"""What a process that trains asks of the system."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

_BLOCKS = """
import resource
import numpy as np
from fedmed_common.processes import keep_freed_memory
{asked}
for _ in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(8):
        np.ones(4_000_000, np.float32)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
"""Takes and frees sixteen megabytes again and again; prints how many pages the last eight times had to be made anew."""


def test_freed_memory_is_kept_for_the_next_step() -> None:
    if not hasattr(ctypes.CDLL(None), "mallopt"):
        pytest.skip("the C library is not glibc")

    def made(asked: str) -> int:
        done = subprocess.run(
            [sys.executable, "-c", _BLOCKS.format(asked=asked)], capture_output=True, check=True
        )
        return int(done.stdout)

    assert made("keep_freed_memory()") < 8 * 4_000_000 * 4 / 4096 / 10
