"""What training changes, and what stays as it is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import SMALL, experiment
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import nn

from fedmed_common import models, params
from fedmed_common.catalogue import ARCHITECTURES
from fedmed_common.config import Experiment
from fedmed_common.errors import ConfigError
from fedmed_common.loading import load_experiment
from fedmed_common.models import build_model, start_model
from fedmed_common.tasks import build_task
from fedmed_server.names import check_names, check_start


def asked(name: str = "unet", *, seed: int = 5, norm: str = "instance", **transfer: Any) -> Experiment:
    plain = experiment(name, 2, seed=seed, norm=norm).model_dump(mode="json", exclude_none=True)
    return Experiment.model_validate({**plain, "transfer": transfer})


def step(network: nn.Module, wanted: Experiment) -> set[str]:
    """Names of the arrays that one step of training changes."""
    torch.manual_seed(3)
    before = params.from_model(network)
    network.train()
    image = torch.randn(2, wanted.data.channels, *wanted.data.patch)
    target = torch.randint(0, 3, (2, *wanted.data.patch))
    trainable = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, 0.1)
    for _ in range(2):
        optimizer.zero_grad()
        build_task(wanted).objective(network, image, target, torch.ones(2, 2, dtype=torch.bool)).backward()
        optimizer.step()
    after = params.from_model(network)
    return {name for name in before if (before[name] != after[name]).any()}


@pytest.mark.parametrize("name", ["unet", "segresnet", "segformer", "unetr", "swin_unetr", "sam"])
def test_of_the_head_alone_nothing_else_changes(name: str) -> None:
    wanted = asked(name, train="head")
    network = build_model(wanted)
    trained = set(params.trained(network))
    assert 0 < len(trained) < len(params.from_model(network))
    assert step(network, wanted) <= trained


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        *((name, {}) for name in SMALL),
        ("fcn", {"variant": "32s"}),
        ("fcn", {"learned_upsampling": True}),
        ("pspnet", {"auxiliary": 0.0}),
        ("dynunet", {"deep_supervision": False}),
        ("mednext", {"deep_supervision": False}),
        ("unetplusplus", {"deep_supervision": False}),
        ("googlenet", {"auxiliary": False}),
        ("inception_v3", {"auxiliary": False}),
        ("deit", {"distilled": False}),
        ("planes", {"fusion": "learned"}),
    ],
)
def test_every_architecture_has_a_head_in_each_of_its_forms(name: str, settings: dict[str, Any]) -> None:
    whole = experiment(name, max(ARCHITECTURES[name].dimensions), **settings)
    plain = whole.model_dump(mode="json", exclude_none=True)
    network = build_model(Experiment.model_validate({**plain, "transfer": {"train": "head"}}))
    learns = {key for key, parameter in network.named_parameters() if parameter.requires_grad}
    assert 0 < len(learns) < len(list(network.parameters()))


@pytest.mark.parametrize("norm", ["instance", "group", "batch"])
def test_a_frozen_batch_norm_measures_nothing(norm: str) -> None:
    wanted = asked("unet", norm=norm, freeze=["model.0.*", "model.1.*"])
    network = build_model(wanted)
    changed = step(network, wanted)
    assert changed
    assert all(name.startswith("model.2.") for name in changed)
    assert all(name.startswith("model.2.") for name in params.trained(network))
    if norm == "batch":
        assert any(name.endswith("running_mean") for name in changed)


@pytest.mark.parametrize("name", ["segformer", "unetr", "swin_unetr", "sam"])
def test_adapters_change_nothing_at_first_and_are_all_that_is_trained(name: str) -> None:
    wanted = asked(name, lora={"rank": 2, "alpha": 4})
    plain, adapted = build_model(asked(name)).eval(), build_model(wanted).eval()
    image = torch.randn(2, wanted.data.channels, *wanted.data.patch)
    with torch.no_grad():
        torch.testing.assert_close(plain(image), adapted(image), rtol=0, atol=1e-6)
    head = {key for key in params.trained(adapted) if ".lora_" not in key}
    assert head == set(params.trained(build_model(asked(name, train="head"))))
    adapters = {key for key in params.trained(adapted) if ".lora_" in key}
    assert adapters
    assert step(adapted, wanted) == adapters | head


def test_adapters_come_from_the_seed_and_lie_where_asked() -> None:
    wanted = asked("segformer", lora={"rank": 3, "targets": ["*.mlp.fc1"]})
    first, second = params.from_model(build_model(wanted)), params.from_model(build_model(wanted))
    assert all((first[name] == second[name]).all() for name in first)
    adapters = {name for name in first if ".lora_A." in name}
    assert len(adapters) == 4
    assert all(".mlp.fc1." in name and first[name].shape[0] == 3 for name in adapters)
    other = params.from_model(
        build_model(asked("segformer", seed=6, lora={"rank": 3, "targets": ["*.mlp.fc1"]}))
    )
    assert all((first[name] != other[name]).any() for name in adapters)


def test_a_head_is_trained_whole_and_no_layer_is_adapted_that_was_not_named() -> None:
    network = build_model(asked("resnet", lora={"rank": 2, "targets": ["*conv1", "fc"]}))
    trained = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert {name for name in trained if ".lora_" not in name} == {"fc.weight", "fc.bias"}
    network = build_model(asked("transmed", lora={"rank": 2, "targets": ["proj"]}))
    places = {name.partition(".lora_A")[0] for name, _ in network.named_modules() if ".lora_A." in name}
    assert places == {"proj"}


@pytest.mark.parametrize(
    ("transfer", "problem", "near"),
    [
        ({"freeze": ["modle.0.*"]}, r"transfer\.freeze: 'modle\.0\.\*' matches nothing", "model."),
        ({"lora": {"targets": ["*.query"]}}, r"transfer\.lora\.targets: '\*\.query'", "model."),
        ({"freeze": ["*"]}, r"transfer\.freeze: nothing is left to train", "transfer.freeze"),
        ({"lora": {"targets": ["model.2.1.*"]}}, r"transfer\.lora\.targets: .* the head alone", "train"),
    ],
)
def test_a_pattern_that_cannot_be_meant_is_answered(transfer: Any, problem: str, near: str) -> None:
    with pytest.raises(ConfigError, match=problem) as error:
        build_model(asked("unet", **transfer))
    assert near in error.value.fix


def test_a_convolution_in_groups_gets_no_adapter() -> None:
    with pytest.raises(ConfigError, match=r"'bottom\.depthwise' matches nothing"):
        build_model(asked("unext", lora={"rank": 2, "targets": ["bottom.depthwise"]}))


def test_what_an_architecture_does_not_name_is_refused_at_once() -> None:
    with pytest.raises(ValidationError, match=r"use one of them"):
        asked("segformer", train="head", lora={"rank": 2})
    with pytest.raises(ValidationError, match=r"transfer\.lora\.targets"):
        asked("unet", lora={"rank": 2})


def test_weights_come_first_then_adapters(tmp_path: Path) -> None:
    source = build_model(asked("segformer", seed=6))
    save_file({name: t.contiguous() for name, t in source.state_dict().items()}, tmp_path / "w.safetensors")
    wanted = asked("segformer", lora={"rank": 2})
    network, loaded = start_model(wanted, tmp_path / "w.safetensors")
    assert loaded is not None
    assert (loaded.missing, loaded.left_over) == ((), ())
    image = torch.randn(1, 1, *wanted.data.patch)
    with torch.no_grad():
        torch.testing.assert_close(network.eval()(image), source.eval()(image), rtol=0, atol=1e-6)


FILE = """
name = "x"
rounds = 1
task = {{ classes = ["a"], dimensions = 2 }}
data = {{ patch = [16, 16] }}
model = {{ channels = [4, 8] }}
[transfer]
weights = "{weights}"
train = "head"
"""


def test_weights_are_relative_to_the_file_and_no_site_hears_of_them(tmp_path: Path) -> None:
    file = tmp_path / "experiment.toml"
    file.write_text(FILE.format(weights="hospital-x/best.safetensors"))
    loaded = load_experiment(file)
    assert loaded.transfer.weights == tmp_path / "hospital-x" / "best.safetensors"
    assert "hospital-x" not in loaded.order_text()
    assert '"weights"' not in loaded.order_text()
    assert '"train":"head"' in loaded.order_text()
    with pytest.raises(ConfigError, match=r"experiment\.toml: transfer\.weights: no such file"):
        check_start(loaded, file)
    (tmp_path / "hospital-x").mkdir()
    (tmp_path / "hospital-x" / "best.safetensors").write_bytes(b"")
    with pytest.raises(
        ConfigError, match=r"experiment\.toml: transfer\.weights: .* is not a safetensors file"
    ):
        check_start(loaded, file)


def test_a_start_that_cannot_be_is_refused_by_the_files_name() -> None:
    for transfer in ({"freeze": ["modle.*"]}, {"freeze": ["*"]}):
        with pytest.raises(ConfigError, match=r"^x\.toml: transfer\.freeze: "):
            check_start(asked("unet", **transfer), Path("x.toml"))


def test_a_package_that_is_absent_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "find_spec", lambda _name: None)
    with pytest.raises(ConfigError, match="'transformers', which is not installed") as error:
        check_names(asked("segformer"), Path("x.toml"))
    assert "fedmed[transformers]" in error.value.fix
    with pytest.raises(ConfigError, match="'peft', which is not installed"):
        build_model(asked("unetr", lora={"rank": 2}))
    check_names(asked("unetr"), Path("x.toml"))


_LIGHT = """
import sys
import fedmed_common.cli, fedmed_common.models
from fedmed_common.config import Experiment
heavy = {"torch", "monai", "transformers", "peft"}
experiment = Experiment.model_validate({"name": "x", "rounds": 1, "task": {"classes": ["a"], "dimensions": 2},
    "data": {"patch": [16, 16]}, "model": {"channels": [4, 8]}, "transfer": {"train": "head"}})
assert not heavy & sys.modules.keys(), heavy & sys.modules.keys()
fedmed_common.models.build_model(experiment)
from fedmed_common.models.figures import figures_of
figures_of(experiment.model, experiment.plan)
assert not {"transformers", "peft"} & sys.modules.keys()
"""


def test_nothing_imports_transformers_that_does_not_need_it() -> None:
    done = subprocess.run([sys.executable, "-c", _LIGHT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
