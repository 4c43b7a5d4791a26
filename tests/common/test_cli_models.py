"""``fedmed models``: what is said of the architectures is what they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from architectures import experiment
from click.testing import CliRunner

from fedmed_common import cli, params
from fedmed_common.catalogue import ARCHITECTURES, Plan, UNet
from fedmed_common.errors import ConfigError, FedmedError
from fedmed_common.models import build_model
from fedmed_common.models.export import read_model, write_onnx, write_torchscript
from fedmed_common.models.figures import count, coupling, figures_of
from fedmed_server.state import save_parameters


def run(*arguments: str) -> tuple[int, str]:
    found = CliRunner().invoke(cli.root_command(), ["models", *arguments])
    if found.exception is not None and not isinstance(found.exception, SystemExit):
        raise found.exception
    return found.exit_code, found.output


def test_one_convolution_is_counted_by_hand() -> None:
    asked = experiment("unet", 2, channels=2)
    found = figures_of(asked.model, asked.plan)
    network = build_model(asked)
    assert (
        found.parameters == count(network) == sum(array.size for array in params.from_model(network).values())
    )
    convolution = torch.nn.Conv2d(1, 1, 3)
    assert count(convolution) == 10


def test_multiply_adds_of_the_first_layer_grow_with_the_patch() -> None:
    small, large = (
        figures_of(UNet(), Plan(dimensions=2, in_channels=1, outputs=2, patch=patch))
        for patch in ((64, 64), (128, 64))
    )
    assert large.multiply_adds == 2 * small.multiply_adds
    assert large.parameters == small.parameters


def test_a_batch_norm_is_named() -> None:
    assert coupling(build_model(experiment("unet", 2))) == ""
    assert coupling(build_model(experiment("unet", 2, norm="batch"))).endswith("is a batch norm")


def test_the_list_alone_names_every_architecture_in_each_dimension(monkeypatch: pytest.MonkeyPatch) -> None:
    some = {name: ARCHITECTURES[name] for name in ("unet", "segresnet")}
    monkeypatch.setattr("fedmed_common.cli_models.ARCHITECTURES", some)
    code, output = run("list", "--json", "--patch", "64,64")
    assert code == 0
    assert [(row["name"], row["dimensions"]) for row in json.loads(output)] == [("unet", 2), ("segresnet", 2)]
    code, plain = run()
    assert code == 0
    assert plain.count("unet") == 2 and plain.count("segresnet") == 2


def test_one_architecture_is_shown_with_its_settings() -> None:
    code, output = run("show", "unet", "--json")
    assert code == 0
    shown = json.loads(output)
    assert [setting["key"] for setting in shown["settings"]] == [
        f"model.{key}" for key in UNet.model_fields if key != "name"
    ]
    assert {row["dimensions"] for row in shown["figures"]} == {2, 3}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("show", "unett"), "did you mean 'unet'"),
        (("list", "--patch", "12"), "two or three numbers"),
        (("list", "--patch", "a,b"), "two or three numbers"),
        (("show", "unet", "--patch", "30,30"), "30 is not a multiple of 8"),
        (("show", "unet3d", "--patch", "32,32"), "works in 3D"),
        (("list", "--task", "segmentatoin"), "did you mean 'segmentation'"),
        (("export", "no.safetensors", "nowhere/x.onnx"), "mkdir -p nowhere"),
        (("export", "no.safetensors", "x.onnx"), "no.safetensors"),
        (("export", "no.safetensors", "x.pkl"), "end the name in .onnx or .pt"),
    ],
)
def test_a_wrong_line_is_answered_with_the_fix(arguments: tuple[str, ...], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        run(*arguments)
    assert said in str(caught.value)


def test_what_a_run_wrote_becomes_onnx_with_the_same_output(tmp_path: Path) -> None:
    asked = experiment("unet", 2)
    network = build_model(asked).eval()
    stored, written = tmp_path / "best.safetensors", tmp_path / "model.onnx"
    save_parameters(stored, params.from_model(network), {"experiment": asked.order_text()})
    code, output = run("export", str(stored), str(written))
    assert code == 0 and "image (batch, 1, 16, 24)" in output
    image = torch.randn(3, 1, 16, 24)
    session = onnxruntime.InferenceSession(written, providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"image": image.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(logits, network(image).numpy(), rtol=1e-4, atol=1e-5)
    again, copy = read_model(stored)
    assert again == asked
    assert torch.equal(copy(image), network(image))


def test_what_a_run_wrote_becomes_torchscript_with_the_same_output(tmp_path: Path) -> None:
    asked = experiment("unet", 3)
    network = build_model(asked).eval()
    stored, written = tmp_path / "run" / "models" / "best.safetensors", tmp_path / "model.pt"
    save_parameters(stored, params.from_model(network), {"experiment": asked.order_text()})
    code, _ = run("export", str(tmp_path / "run"), str(written))
    assert code == 0
    image = torch.randn(4, 1, *asked.data.patch)
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.load(written)(image), network(image), rtol=0, atol=1e-5)


@pytest.mark.parametrize("write", [write_onnx, write_torchscript])
def test_what_would_give_something_else_is_not_written(write: Any, tmp_path: Path) -> None:
    class Drawing(torch.nn.Module):
        """Another answer each time."""

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return image + torch.randn_like(image)

    with pytest.raises(FedmedError, match="from the network's"):
        write(Drawing(), experiment("unet", 2), tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    asked = experiment("unet", 2)
    file = tmp_path / "x.safetensors"
    file.write_bytes(b"nothing")
    with pytest.raises(ConfigError, match=r"x\.safetensors: cannot be read"):
        read_model(file)
    save_parameters(file, {"w": np.zeros(1, np.float32)}, {})
    with pytest.raises(ConfigError, match="does not say which experiment"):
        read_model(file)
    save_parameters(file, {"w": np.zeros(1, np.float32)}, {"experiment": asked.order_text()})
    with pytest.raises(ConfigError, match="not those of its experiment"):
        read_model(file)


def test_what_cannot_be_exported_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(UNet, "exports", False)
    asked = experiment("unet", 2)
    with pytest.raises(ConfigError, match="cannot be written as ONNX"):
        write_onnx(build_model(asked), asked, tmp_path / "x.onnx")


def test_a_patch_that_suits_some_lists_the_others_too(monkeypatch: pytest.MonkeyPatch) -> None:
    some = {name: ARCHITECTURES[name] for name in ("unet", "deepmedic")}
    monkeypatch.setattr("fedmed_common.cli_models.ARCHITECTURES", some)
    code, output = run("list", "--json", "--patch", "30,30")
    assert code == 0
    found = {row["name"]: row for row in json.loads(output)}
    assert (found["unet"]["parameters"], found["unet"]["private"]) == (None, "not at this patch")
    assert found["deepmedic"]["parameters"] > 0
