"""Pictures beside the report: kept in the run's folder, so that the report can be drawn again with them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fedmed_common.files import write_atomically

_FOLDER, _LIST = "figures", "figures.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A PNG with what it shows. ``of_patients``: it shows pixels of patients, so it stays on this machine."""

    title: str
    caption: str
    png: bytes
    of_patients: bool = True


def save_figures(run: Path, figures: Sequence[Figure]) -> None:
    """Put the figures into the run's folder, in place of those there."""
    folder = run / _FOLDER
    folder.mkdir(exist_ok=True)
    entries = []
    for number, figure in enumerate(figures, start=1):
        name = f"{number:03d}.png"
        write_atomically(folder / name, figure.png)
        entries.append(
            {
                "file": name,
                "title": figure.title,
                "caption": figure.caption,
                "of_patients": figure.of_patients,
            }
        )
    write_atomically(folder / _LIST, json.dumps(entries, indent=1).encode())


def load_figures(run: Path) -> tuple[Figure, ...]:
    """The figures in the run's folder, in order; none where none were saved."""
    folder = run / _FOLDER
    if not (folder / _LIST).exists():
        return ()
    return tuple(
        Figure(
            title=entry["title"],
            caption=entry["caption"],
            of_patients=entry["of_patients"],
            png=(folder / Path(entry["file"]).name).read_bytes(),
        )
        for entry in json.loads((folder / _LIST).read_bytes())
    )
