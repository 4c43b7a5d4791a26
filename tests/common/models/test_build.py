"""Building a network: from the experiment alone, in any process, or a refusal that names the field."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys

import pytest
import torch
from architectures import experiment
from pydantic import ValidationError
from safetensors.torch import save

from fedmed_common.config import Experiment
from fedmed_common.models import build_model


def digest(module: torch.nn.Module) -> str:
    return hashlib.sha256(save(dict(module.state_dict()))).hexdigest()


def test_two_processes_build_equal_weights() -> None:
    task = experiment("unet", 3)
    program = (
        "import sys, hashlib; from safetensors.torch import save; from fedmed_common.loading import experiment_from_order;"
        "from fedmed_common.models import build_model;"
        "state = dict(build_model(experiment_from_order(sys.argv[1])).state_dict());"
        "print(hashlib.sha256(save(state)).hexdigest())"
    )
    paths = os.pathsep.join(path for path in sys.path if path)
    answer = subprocess.run(
        [sys.executable, "-c", program, task.order_text()],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": paths},
    )
    assert answer.stdout.strip() == digest(build_model(task))


@pytest.mark.parametrize("norm", ["instance", "batch", "group"])
def test_a_patch_that_shrinks_to_one_voxel_is_refused(norm: str) -> None:
    settings = experiment("unet", 2, norm=norm).model_dump(mode="json")
    settings["data"]["patch"] = [8, 4]
    assert build_model(Experiment.model_validate(settings))(torch.ones(1, 1, 8, 4)).shape == (1, 3, 8, 4)
    settings["data"]["patch"] = [4, 4]
    with pytest.raises(
        ValidationError, match=r"model\.channels: 3 levels shrink a patch of \[4, 4\] to one voxel"
    ):
        Experiment.model_validate(settings)
