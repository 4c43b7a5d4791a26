"""A site's measurement of a model on patients that it holds out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fedmed_client import pulse
from fedmed_client.data.cohort import Case
from fedmed_client.workbench import Bench
from fedmed_common import params
from fedmed_common.metrics import Metrics
from fedmed_common.params import Parameters


def evaluate(bench: Bench, cases: Sequence[Case], parameters: Parameters) -> Metrics:
    """The task's metrics over the patients of the cases."""
    params.to_model(parameters, bench.model)
    bench.model.eval()
    by_patient: dict[int, list[Any]] = {}
    for case in cases:
        by_patient.setdefault(case.patient, []).append(bench.task.measure(bench.model, case, bench.device))
        pulse.beat()
    return bench.task.summarise(by_patient.values())
