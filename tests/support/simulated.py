"""Simulated runs through the command, as a researcher starts and kills them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from fedmed_common import cli
from fedmed_server import history
from fedmed_server.history import RoundDone

FEDMED = str(Path(sys.executable).with_name("fedmed"))
LONGEST_SECONDS = 240.0
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    ["torch._dynamo", "monai", "mlflow.store.tracking.sqlalchemy_store", "matplotlib.pyplot"]
)


def fedmed(*arguments: str | Path | int, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a command in a process of its own; ``check``: it must end well.

    The process is forked from one that has imported the libraries already: importing them takes most of a small run.
    """
    words = [str(argument) for argument in arguments]
    with tempfile.TemporaryDirectory() as folder:
        printed = [Path(folder) / name for name in ("stdout", "stderr")]
        for file in printed:
            file.touch()
        process = FORKS.Process(target=_run_command, args=(words, printed, dict(os.environ)))
        process.start()
        process.join(LONGEST_SECONDS)
        if process.exitcode is None:
            process.kill()
            process.join()
        stdout, stderr = (file.read_text(encoding="utf-8") for file in printed)
    assert not check or process.exitcode == 0, stdout + stderr
    return subprocess.CompletedProcess([FEDMED, *words], process.exitcode or 0, stdout, stderr)


def _run_command(words: list[str], printed: list[Path], environment: dict[str, str]) -> None:
    """What the installed ``fedmed`` does."""
    os.environ.clear()
    os.environ.update(environment)
    for number, file in enumerate(printed, 1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_APPEND), number)
    sys.argv = [FEDMED, *words]
    cli.main()


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
