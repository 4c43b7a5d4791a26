"""A virtual environment for each peer, filled from the registry: no peer sees fedmed, nor another peer's packages."""

from __future__ import annotations

import subprocess
import sys
import venv
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

FOLDER = Path(__file__).parents[2] / ".bench"
SHARED = tuple(f"{name}=={version(name).partition('+')[0]}" for name in ("torch", "numpy", "safetensors"))
"""What the work itself needs, in the very versions that fedmed runs with."""
PEERS = {
    "plain": (),
    "pfl": ("pfl[pytorch]==0.6.0",),
    "flower": ("flwr[simulation]==1.41.0",),
    "nvflare": ("nvflare==2.9.0",),
}
"""By environment: what is installed beside it."""
_TOLD_LINES = 15


class NotInstalled(Exception):
    """The registry's client did not install a peer; the text is its own last words."""


@dataclass(frozen=True, kw_only=True)
class Environment:
    """One that is there. ``versions``: of what was asked for."""

    python: Path
    versions: dict[str, str]


def environment(name: str) -> Environment:
    """The peer's, made where it is not there yet, or was made of other versions.

    Raises:
        NotInstalled: with pip's error.
    """
    folder, wanted = FOLDER / name, (*PEERS[name], *SHARED)
    python, mark = folder / "bin" / "python", folder / "installed.txt"
    if not mark.exists() or mark.read_text() != "\n".join(wanted):
        print(f"installing {', '.join(wanted)}", flush=True)
        venv.create(folder, clear=True, with_pip=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *wanted]
        done = subprocess.run(pip, capture_output=True, text=True, check=False)
        if done.returncode:
            said = [line for line in done.stderr.splitlines() if not line.startswith("WARNING")]
            raise NotInstalled("\n".join([*said[-_TOLD_LINES:], f"pip ended with {done.returncode}"]))
        mark.write_text("\n".join(wanted))
    names = [requirement.partition("==")[0].partition("[")[0] for requirement in wanted]
    code = f"from importlib.metadata import version; print(*[version(name) for name in {names!r}])"
    told = subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=True).stdout
    return Environment(python=python, versions=dict(zip(names, told.split(), strict=True)))


def here() -> Environment:
    """fedmed's own: the one that runs this."""
    names = ("fedmed", "flwr", "torch", "numpy")
    return Environment(python=Path(sys.executable), versions={name: version(name) for name in names})
