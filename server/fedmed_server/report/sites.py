"""``sites.csv``: a line for each site of a run, however many there are."""

from __future__ import annotations

import csv
import io
import math

from fedmed_server.report import effort, tables
from fedmed_server.report.source import RunHistory

SITES = "sites.csv"
_PHASES = ("train", "validate", "test")


def sites_table(run: RunHistory) -> bytes:
    """Patients, answers, time, bytes, privacy and the leading metric by class, as comma-separated values."""
    measured = tables.scores(run)
    results = {result.site: result for result in (measured.results if measured else ())}
    lead, spent = run.experiment.task.scores[0].name, dict(effort.spent(run))
    split = measured.split if measured else "test"
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        [
            "site",
            *(f"patients_{name}" for name in ("train", "validation", "test")),
            *("answered", "asked", "staleness"),
            *(f"seconds_{phase}" for phase in _PHASES),
            *("bytes_down", "bytes_up", "epsilon"),
            *(f"{split}_{lead}_{name}" for name in run.experiment.task.classes),
            *(f"{split}_patients_{name}" for name in run.experiment.task.classes),
        ]
    )
    for cost in effort.costs(run):
        means = results[cost.name].means() if cost.name in results else {}
        found = [means.get(f"{lead}/{name}") for name in run.experiment.task.classes]
        writer.writerow(
            [
                cost.name,
                *(cost.patients.get(name, "") for name in ("train", "validation", "test")),
                *(cost.answered, cost.asked, f"{cost.staleness:g}"),
                *(f"{cost.seconds[phase]:.6g}" if phase in cost.seconds else "" for phase in _PHASES),
                *(cost.bytes_down, cost.bytes_up, _number(spent.get(cost.name))),
                *(_number(None if mean is None else mean.value) for mean in found),
                *("" if mean is None else f"{mean.weight:g}" for mean in found),
            ]
        )
    return text.getvalue().encode()


def _number(value: float | None) -> str:
    return "" if value is None or not math.isfinite(value) else f"{value:.6g}"
