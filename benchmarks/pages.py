"""What the benchmarks' dated pages have in common."""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).parent


def dated(name: str) -> str:
    """The name of today's page."""
    return f"{name}-{datetime.now(UTC):%Y-%m-%d}"


def made_by() -> str:
    """The command, without the folders of this machine, the machine and the versions."""
    words = [Path(word).name if Path(word).is_absolute() else word for word in sys.argv[1:]]
    command = " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *words])
    versions = ", ".join(f"{package} {version(package)}" for package in ("fedmed", "torch"))
    return f"`{command}`; {platform.machine()}, {os.cpu_count()} cores; {versions}."


def parser(doc: str | None, folder: str, seeds: Sequence[int]) -> argparse.ArgumentParser:
    """The options of a benchmark that carries out runs and then writes a page."""
    found = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--seeds", type=int, nargs="+", default=list(seeds))
    found.add_argument("--folder", type=_made, default=folder, help="for experiments and runs")
    found.add_argument("--no-page", action="store_true", help="only carry the runs out")
    return found


def _made(folder: str) -> Path:
    path = Path(folder).absolute()
    path.mkdir(parents=True, exist_ok=True)
    return path


def comparison(results: Path, pictures: Path) -> str:
    """The page of a finished ``fedmed compare`` without its title, its pictures copied to a folder below this one."""
    pictures.mkdir(parents=True, exist_ok=True)
    for picture in sorted((results / "figures").glob("*.png")):
        shutil.copyfile(picture, pictures / picture.name)
    text = (results / "comparison.md").read_text().partition("\n")[2]
    return text.replace("figures/", f"{pictures.relative_to(HERE)}/")


def write(name: str, lines: Sequence[str]) -> None:
    """A page beside the scripts."""
    file = HERE / f"{name}.md"
    file.write_text("\n".join(lines))
    print(f"written: {file}")
