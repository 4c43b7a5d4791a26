"""A site's measurement of a model on patients that it holds out."""

from __future__ import annotations

from typing import Any

from fedmed_client import pulse
from fedmed_client.workbench import COHORTS, SiteHome, bench_for, numerics
from fedmed_common import params, wire


def measurements(home: SiteHome, order: wire.Order) -> dict[int, list[Any]]:
    """What the task keeps of each case of the order's split, by the patient's number in the cohort.

    It stays at the site: only what ``Task.summarise`` makes of all patients together may leave.
    """
    bench = bench_for(order.experiment, gpu=home.site.device.gpu != "none")
    cohort, _ = COHORTS.get(home, order.experiment)
    by_patient: dict[int, list[Any]] = {}
    with numerics(bench.experiment, bench.device, home.site.device.threads):
        params.to_model(order.parameters, bench.model)
        bench.model.eval()
        for case in cohort.of(order.split):
            by_patient.setdefault(case.patient, []).append(
                bench.task.measure(bench.model, case, bench.device)
            )
            pulse.beat()
    return by_patient
