"""The files that tell what a comparison found."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fedmed_common.files import write_atomically
from fedmed_simulations.compare import figures, tables
from fedmed_simulations.compare.columns import Array
from fedmed_simulations.compare.plan import LAST
from fedmed_simulations.compare.results import Results
from fedmed_simulations.compare.study import told


def write_results(found: Results, folder: Path) -> None:
    """``comparison.md``, ``comparison.json``, ``comparison.csv``, ``sites.csv`` and ``figures/``."""
    pictures = figures.draw(found)
    (folder / "figures").mkdir(exist_ok=True)
    for name, picture in pictures.items():
        write_atomically(folder / "figures" / f"{name}.png", picture)
    files = {
        "comparison.json": json.dumps(as_json(found), indent=1),
        "comparison.csv": tables.columns_csv(found),
        "sites.csv": tables.sites_csv(found),
        "comparison.md": tables.markdown(found, list(pictures)),
    }
    for name, text in files.items():
        write_atomically(folder / name, text.encode())


def as_json(found: Results) -> dict[str, Any]:
    """All numbers, those that are not there as null."""
    return {
        "name": found.name,
        "reference": found.reference,
        "metric": found.classes.lead.name,
        "seeds": list(found.seeds),
        "budget": found.budget,
        "steps": found.steps,
        "estimator": f"mean of the last {LAST} evaluation rounds",
        "groups": {name: list(classes) for name, classes in found.classes.groups.items()},
        "training_patients": dict(found.presence),
        "choices": [told(choice) for choice in found.choices],
        "competitors": {
            name: {
                "columns": {column: _numbers(found.points[name][column]) for column in found.columns},
                "classes": _by_class(found, found.by_class.get(name)),
                "false_positives": _by_class(found, found.wrong_by_class.get(name)),
                "differences": {
                    column: {key: _number(value) for key, value in asdict(interval).items()}
                    for column, interval in found.differences.get(name, {}).items()
                    if column in found.columns
                },
                "p_holm": _number(found.p_values.get(name, math.nan)),
            }
            for name in found.points
        },
        "notes": list(found.notes),
    }


def _by_class(found: Results, values_K: Array | None) -> dict[str, float | None]:
    return {} if values_K is None else dict(zip(found.classes.names, _numbers(values_K), strict=True))


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _numbers(values: Array) -> list[float | None]:
    return [_number(value) for value in values.tolist()]
