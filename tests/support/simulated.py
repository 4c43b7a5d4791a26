"""Simulated runs through the command, as a researcher starts and kills them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from fedmed_server import history
from fedmed_server.history import RoundDone

FEDMED = str(Path(sys.executable).with_name("fedmed"))


def fedmed(*arguments: str | Path | int, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a command; ``check``: it must end well."""
    done = subprocess.run(
        [FEDMED, *map(str, arguments)], capture_output=True, text=True, timeout=240, check=False
    )
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


def only_run(runs: Path) -> Path:
    """The folder of the one run that was begun."""
    folders = [folder for folder in runs.iterdir() if (folder / "simulation.json").exists()]
    assert len(folders) == 1
    return folders[0]


def weights(run: Path, name: str = "last") -> dict[str, np.ndarray]:
    """The model that a run left."""
    return load_file(run / "models" / f"{name}.safetensors")


def assert_equal_weights(first: Path, second: Path) -> None:
    """Bit by bit, of both models."""
    for name in ("last", "best"):
        a, b = weights(first, name), weights(second, name)
        assert list(a) == list(b)
        for tensor in a:
            np.testing.assert_array_equal(a[tensor], b[tensor], err_msg=f"{name}: {tensor}")


def kill_after_round(file: Path, runs: Path, rounds: int, wait_seconds: float = 120.0) -> Path:
    """Start a run and kill its process the hard way as soon as it has recorded some rounds."""
    process = subprocess.Popen(
        [FEDMED, "simulate", str(file), "--runs", str(runs)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        end = time.monotonic() + wait_seconds
        while time.monotonic() < end and process.poll() is None:
            done = [
                record
                for folder in runs.glob("*/history.jsonl")
                for record in history.read(folder)
                if isinstance(record, RoundDone)
            ]
            if len(done) >= rounds:
                break
            time.sleep(0.005)
        assert process.poll() is None, "the run ended before it could be killed"
        os.kill(process.pid, signal.SIGKILL)
    finally:
        process.kill()
        process.wait()
    return only_run(runs)
