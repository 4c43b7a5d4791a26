"""A site's measurement of a model on patients that it holds out."""

from __future__ import annotations

from collections.abc import Sequence

from fedmed_client import pulse
from fedmed_client.data.cohort import Case
from fedmed_client.workbench import Bench
from fedmed_common import params
from fedmed_common.metrics import Metrics, merge
from fedmed_common.params import Parameters
from fedmed_common.tasks import patient_mean


def evaluate(bench: Bench, cases: Sequence[Case], parameters: Parameters) -> Metrics:
    """Metrics summed over patients; a patient with several cases counts once."""
    params.to_model(parameters, bench.model)
    bench.model.eval()
    by_patient: dict[int, list[Metrics]] = {}
    for case in cases:
        prediction = bench.task.predict(bench.model, case.image, bench.device)
        scores = bench.task.score(prediction, case.label, case.annotated, case.spacing_mm)
        by_patient.setdefault(case.patient, []).append(scores)
        pulse.beat()
    return merge(patient_mean(scores) for scores in by_patient.values())
