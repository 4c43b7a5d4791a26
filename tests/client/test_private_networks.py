"""Every architecture can be trained privately: it keeps nothing of a patient, and a patient's gradient can be clipped."""

from __future__ import annotations

import pytest
import torch
from architectures import EACH_BUT_MOST_SLOW, experiment

from fedmed_client import independence
from fedmed_client.patient_gradients import Samples
from fedmed_client.private import Mechanism, clipped_sum
from fedmed_client.workbench import Bench
from fedmed_common import params
from fedmed_common.config import Experiment
from fedmed_common.models import build_model
from fedmed_common.tasks import build_task


def _patient(asked: Experiment, seed: int) -> Samples:
    rng = torch.Generator().manual_seed(seed)
    classes, whole = len(asked.task.classes), asked.task.name == "classification"
    shape = (2, classes) if whole else (2, *asked.data.patch)
    image = torch.randn(2, asked.data.channels, *asked.data.patch, generator=rng)
    return image, torch.randint(0, 2, shape, generator=rng), torch.ones(2, classes, dtype=torch.bool)


@pytest.mark.parametrize(("name", "dimensions"), EACH_BUT_MOST_SLOW, ids=str)
def test_nothing_of_a_patient_stays_and_each_adds_no_more_than_the_norm(name: str, dimensions: int) -> None:
    asked = experiment(name, dimensions)
    model = build_model(asked)
    bench = Bench(experiment=asked, model=model, task=build_task(asked), device=torch.device("cpu"))
    one = _patient(asked, 1)
    independence.check(bench, params.from_model(model), one)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    mechanism = Mechanism(clipping_norm=1e-3, noise_multiplier=1.0, sampling_rate=0.5, patients=2)
    flat = torch.cat([part.flatten() for part in clipped_sum(bench, parameters, mechanism, [one])])
    assert float(flat.norm()) == pytest.approx(1e-3, rel=1e-4)
