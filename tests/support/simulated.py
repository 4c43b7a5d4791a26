"""Simulated runs through the command, as a researcher starts and kills them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
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
    """Run a command to its end; ``check``: it must end well."""
    with tempfile.TemporaryDirectory() as folder:
        printed = [Path(folder) / name for name in ("stdout", "stderr")]
        process = start(*arguments, printed=printed)
        process.join(LONGEST_SECONDS)
        process.kill()
        process.join()
        stdout, stderr = (file.read_text(encoding="utf-8") for file in printed)
    assert process.exitcode is not None
    assert not check or process.exitcode == 0, stdout + stderr
    return subprocess.CompletedProcess([FEDMED, *map(str, arguments)], process.exitcode, stdout, stderr)


def start(*arguments: str | Path | int, printed: Sequence[Path] = (Path(os.devnull),) * 2) -> BaseProcess:
    """Start a command in a process of its own; ``printed``: where its output and its errors go.

    The process is forked from one that has imported the libraries already: importing them takes most of a small run.
    """
    for file in printed:
        file.touch()
    words = [str(argument) for argument in arguments]
    process = FORKS.Process(target=_run_command, args=(words, list(printed), dict(os.environ)))
    process.start()
    return process


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
    process = start("simulate", file, "--runs", runs)
    try:
        end = time.monotonic() + wait_seconds
        while time.monotonic() < end and process.exitcode is None:
            done = [
                record
                for folder in runs.glob("*/history.jsonl")
                for record in history.read(folder)
                if isinstance(record, RoundDone)
            ]
            if len(done) >= rounds:
                break
            time.sleep(0.005)
        assert process.exitcode is None, "the run ended before it could be killed"
    finally:
        process.kill()
        process.join()
    assert process.exitcode == -signal.SIGKILL
    return only_run(runs)


def workers_of(pid: int) -> list[int]:
    """The worker processes that a process has spawned."""
    children: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        children += map(int, (task / "children").read_text().split())
    lines = {child: Path(f"/proc/{child}/cmdline").read_bytes() for child in children}
    return [child for child, line in lines.items() if b"spawn_main" in line]


def is_alive(pid: int) -> bool:
    """Whether there is such a process, and it is not a dead one that nobody has asked about."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
