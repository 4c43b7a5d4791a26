"""Every architecture passes the same tester."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from itertools import product
from typing import Any

import pytest
import torch
from safetensors.torch import load, save

from fedmed_common.config import Experiment
from fedmed_common.errors import ConfigError
from fedmed_common.models import MODELS, build_model

PATCH = {2: (16, 24), 3: (16, 8, 24)}
VARIANTS = [
    {"name": name, "channels": (4, 6, 8), "norm": norm, "residual_units": units, "dropout": dropout}
    for name, norm, (units, dropout) in product(
        MODELS, ("instance", "batch", "group"), ((0, 0.0), (1, 0.0), (2, 0.1))
    )
]


def experiment(dimensions: int = 3, *, seed: int = 5, **model: object) -> Experiment:
    return Experiment.model_validate(
        {
            "name": "models",
            "seed": seed,
            "rounds": 1,
            "task": {"classes": ["liver", "spleen"], "dimensions": dimensions},
            "data": {"channels": 2, "patch": PATCH[dimensions]},
            "model": {"channels": (4, 6, 8), **model},
        }
    )


def digest(module: torch.nn.Module) -> str:
    return hashlib.sha256(save(dict(module.state_dict()))).hexdigest()


@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize(
    "model",
    VARIANTS,
    ids=lambda model: "-".join(str(model[key]) for key in ("name", "norm", "residual_units")),
)
class TestEveryModel:
    def test_gives_one_logit_for_each_class_and_voxel(self, model: dict[str, Any], dimensions: int) -> None:
        network = build_model(experiment(dimensions, **model))
        logits = network(torch.ones(2, 2, *PATCH[dimensions]))
        assert logits.shape == (2, 3, *PATCH[dimensions])
        assert {(tensor.dtype, tensor.device.type) for tensor in network.parameters()} == {
            (torch.float32, "cpu")
        }

    def test_a_gradient_reaches_every_parameter(self, model: dict[str, Any], dimensions: int) -> None:
        network = build_model(experiment(dimensions, **model))
        generator = torch.Generator().manual_seed(1)
        image = torch.randn(2, 2, *PATCH[dimensions], generator=generator)
        target = torch.randn(2, 3, *PATCH[dimensions], generator=generator)
        (network(image) * target).sum().backward()
        for name, parameter in network.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.any(), name

    def test_weights_come_from_the_seed_alone(self, model: dict[str, Any], dimensions: int) -> None:
        torch.manual_seed(1)
        first = build_model(experiment(dimensions, **model))
        torch.manual_seed(2)
        second = build_model(experiment(dimensions, **model))
        other = build_model(experiment(dimensions, seed=6, **model))
        assert digest(first) == digest(second) != digest(other)

    def test_leaves_the_global_random_state_alone(self, model: dict[str, Any], dimensions: int) -> None:
        before = torch.get_rng_state()
        build_model(experiment(dimensions, **model))
        assert torch.equal(before, torch.get_rng_state())

    def test_state_survives_safetensors(self, model: dict[str, Any], dimensions: int) -> None:
        network = build_model(experiment(dimensions, **model))
        copy = build_model(experiment(dimensions, seed=6, **model))
        copy.load_state_dict(load(save(dict(network.state_dict()))))
        assert digest(copy) == digest(network)


def test_two_processes_build_equal_weights() -> None:
    task = experiment(3)
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


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"(?s)model\.name: unknown name 'unett'.*did you mean 'unet'\?"):
        build_model(experiment(name="unett"))
    with pytest.raises(ConfigError, match=r"known: unet"):
        build_model(experiment(name="zzz"))


@pytest.mark.parametrize("norm", ["instance", "batch", "group"])
def test_a_patch_that_shrinks_to_one_voxel_is_refused(norm: str) -> None:
    settings = experiment(2, norm=norm).model_dump(mode="json")
    settings["data"]["patch"] = [8, 4]
    assert build_model(Experiment.model_validate(settings))(torch.ones(1, 2, 8, 4)).shape == (1, 3, 8, 4)
    settings["data"]["patch"] = [4, 4]
    with pytest.raises(
        ConfigError, match=r"model\.channels: 3 levels shrink a patch of \[4, 4\] to one voxel"
    ):
        build_model(Experiment.model_validate(settings))
