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

from fedmed_common.catalogue.unets_modern import SegResNet
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


@pytest.mark.parametrize(
    ("name", "patch"),
    [
        ("resnet", (32, 32)),
        ("xception", (32, 16)),
        ("efficientnet", (17, 30)),
        ("googlenet", (32, 32)),
        ("densenet", (40, 63)),
        ("transmed", (32, 32)),
        ("pspnet", (32, 40)),
        ("inception_v3", (107, 107)),
        ("vgg", (32, 32)),
    ],
)
@pytest.mark.parametrize("batch", [1, 2])
def test_a_batch_norm_that_one_patch_gives_one_voxel_needs_two(
    name: str, patch: tuple[int, ...], batch: int
) -> None:
    plain = experiment(name, 2, norm="batch").model_dump(mode="json", exclude_none=True)
    plain |= {"data": plain["data"] | {"patch": patch}, "train": plain["train"] | {"batch_size": batch}}
    if batch == 1 and name not in ("vgg", "inception_v3"):
        with pytest.raises(ValidationError, match=r"norm = 'batch'.* of at least 2 x accumulate"):
            Experiment.model_validate(plain)
        return
    network = build_model(Experiment.model_validate(plain)).train()
    network(torch.randn(batch, 1, *patch))


def test_a_segresnet_goes_up_as_often_as_down() -> None:
    with pytest.raises(ValidationError, match=r"model\.blocks_up has 3 numbers.* it needs 2"):
        SegResNet(blocks_down=(1, 2, 2))
    with pytest.raises(ValidationError, match=r"one voxel"):
        plain = experiment("segresnet", 3).model_dump(mode="json", exclude_none=True)
        Experiment.model_validate({**plain, "data": {"patch": [4, 4, 4]}})
