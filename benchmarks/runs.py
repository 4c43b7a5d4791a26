"""Simulated runs of benchmarks, through the command; what is done already is not done again."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import tomli_w

from fedmed_server import history
from fedmed_server.history import RunEnded

FEDMED = str(Path(sys.executable).with_name("fedmed"))


def simulate(folder: Path, name: str, document: dict[str, Any]) -> bool:
    """Carry out the experiment under the name, unless ``folder`` has a run of it that was completed; whether it was needed."""
    if done(folder, name) is not None:
        return False
    file = folder / f"{name}.toml"
    file.write_text(tomli_w.dumps(document | {"name": name}))
    command = [FEDMED, "simulate", str(file), "--runs", str(folder / "runs")]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return True


def done(folder: Path, name: str) -> tuple[Path, RunEnded] | None:
    """The run's folder and its last line, where it was completed."""
    for file in sorted((folder / "runs").glob(f"20*-??????-{name}-????/{history.FILE}")):
        *_, last = history.read(file)
        if isinstance(last, RunEnded) and last.status == "completed":
            return file.parent, last
    return None
