"""Weights from files of others: what fits is loaded, and what does not is said."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from architectures import experiment
from safetensors.torch import load_file, save_file
from torch import nn

from fedmed_common.errors import ConfigError
from fedmed_common.models import build_model
from fedmed_common.weight_files import find_weights, read_weights
from fedmed_common.weights import Loaded, load_weights


def network(seed: int = 1, *, channels: int = 1, classes: int = 2) -> nn.Sequential:
    torch.manual_seed(seed)
    encoder = nn.Sequential(nn.Conv2d(channels, 4, 3), nn.BatchNorm2d(4))
    return nn.Sequential(encoder, nn.Conv2d(4, classes, 1))


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items() if tensor.is_floating_point()}


def assert_same(model: nn.Module, wanted: dict[str, torch.Tensor]) -> None:
    found = state(model)
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())


def write(file: Path, content: object) -> Path:
    torch.save(content, file)
    return file


@pytest.mark.parametrize("kind", ["safetensors", "plain", "nested", "wrapped", "whole", "folder", "sharded"])
def test_each_kind_of_file_gives_every_array(kind: str, tmp_path: Path) -> None:
    wanted, target = state(network(1)), network(2)
    file = tmp_path / "weights.pth"
    if kind == "safetensors":
        save_file(wanted, file := tmp_path / "w.safetensors")
    elif kind == "plain":
        write(file, wanted)
    elif kind == "nested":
        write(file, {"epoch": 3, "state_dict": {"model": wanted}})
    elif kind == "wrapped":
        write(file, {"model_state": {f"module.{name}": tensor for name, tensor in wanted.items()}})
    elif kind == "whole":
        write(file, network(1).state_dict())
    else:
        file = tmp_path
        (tmp_path / "config.json").write_text("{}")
        parts = {"model.safetensors": wanted}
        if kind == "sharded":
            parts = {f"part-{name}.safetensors": {name: tensor} for name, tensor in wanted.items()}
            index = {name: part for part, tensors in parts.items() for name in tensors}
            (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
        for part, tensors in parts.items():
            save_file(tensors, tmp_path / part)
    report = load_weights(target, file)
    assert_same(target, wanted)
    assert sorted(report.loaded) == sorted(wanted)
    assert (report.missing, report.other_shape, report.left_over, report.summed) == ((), {}, (), ())


@pytest.mark.parametrize(("theirs", "ours"), [("net.", ""), ("", "model."), ("a.b.", "model."), ("", "")])
def test_other_prefixes_are_found(theirs: str, ours: str, tmp_path: Path) -> None:
    wanted = state(network(1))
    save_file({theirs + name: tensor for name, tensor in wanted.items()}, tmp_path / "w.safetensors")
    target = nn.ModuleDict({"model": network(2)}) if ours else network(2)
    report = load_weights(target, tmp_path / "w.safetensors")
    assert_same(target, {ours + name: tensor for name, tensor in wanted.items()})
    assert report.prefix == (theirs, ours)


def test_what_did_not_fit_is_said(tmp_path: Path) -> None:
    given = state(network(1, classes=5))
    given["extra.weight"] = torch.ones(2)
    del given["0.1.bias"]
    save_file(given, tmp_path / "w.safetensors")
    target = network(2)
    before = state(target)
    report = load_weights(target, tmp_path / "w.safetensors")
    assert report == Loaded(
        file="w.safetensors",
        loaded=report.loaded,
        summed=(),
        missing=("0.1.bias",),
        alone=(),
        of_other_classes=(),
        other_shape={"1.weight": ((5, 4, 1, 1), (2, 4, 1, 1)), "1.bias": ((5,), (2,))},
        left_over=("extra.weight",),
        prefix=("", ""),
    )
    assert_same(target, {name: given[name] for name in report.loaded})
    assert_same(target, {name: before[name] for name in ("0.1.bias", "1.weight", "1.bias")})
    assert report.sentences() == [
        "5 of the network's 8 arrays are from w.safetensors",
        "1 not in the file, initialised anew: 0.1.bias",
        "2 of another shape in the file, initialised anew: 1.weight (5x4x1x1, not 2x4x1x1), 1.bias (5, not 2)",
        "1 left over in the file: extra.weight",
    ]


def test_weights_for_colour_serve_grey_images(tmp_path: Path) -> None:
    colour, grey = network(1, channels=3), network(2)
    save_file(state(colour), tmp_path / "w.safetensors")
    report = load_weights(grey, tmp_path / "w.safetensors")
    assert report.summed == ("0.0.weight",)
    assert "1 summed over the input channels: 0.0.weight" in report.sentences()
    image = torch.randn(2, 1, 8, 8)
    torch.testing.assert_close(grey.eval()(image), colour.eval()(image.expand(-1, 3, -1, -1)))


def test_weights_for_grey_images_serve_colour(tmp_path: Path) -> None:
    grey, colour = network(1), network(2, channels=3)
    save_file(state(grey), tmp_path / "w.safetensors")
    load_weights(colour, tmp_path / "w.safetensors")
    image = torch.randn(2, 1, 8, 8)
    torch.testing.assert_close(colour.eval()(image.expand(-1, 3, -1, -1)), grey.eval()(image))


def _older(name: str, changes: Sequence[tuple[str, str]]) -> str:
    older = name
    for new, old in changes:
        older = older.replace(new, old)
    for stage in range(4):
        older = older.replace(f"stages.{stage}.patch_embeddings.", f"encoder.patch_embeddings.{stage}.")
        older = older.replace(f"stages.{stage}.blocks.", f"encoder.block.{stage}.")
        older = older.replace(f"stages.{stage}.layer_norm.", f"encoder.layer_norm.{stage}.")
    return older


def test_published_names_are_translated(tmp_path: Path) -> None:
    """What transformers wrote before its version 5, and the published files still have."""
    source = build_model(experiment("segformer", 2))
    older = (
        ("network.", ""),
        (r".sequence_reduction.sequence_reduction.", ".self.sr."),
        (r".sequence_reduction.layer_norm.", ".self.layer_norm."),
        (".q_proj.", ".self.query."),
        (".k_proj.", ".self.key."),
        (".v_proj.", ".self.value."),
        (".o_proj.", ".output.dense."),
        (".fc1.", ".dense1."),
        (".fc2.", ".dense2."),
        (".layernorm_before.", ".layer_norm_1."),
        (".layernorm_after.", ".layer_norm_2."),
        (".linear_projections.", ".linear_c."),
    )
    published = {_older(name, older): tensor for name, tensor in state(source).items()}
    assert "segformer.encoder.block.0.0.attention.self.query.weight" in published
    assert "segformer.encoder.block.0.0.attention.self.sr.weight" in published
    save_file(published, tmp_path / "model.safetensors")
    target = build_model(experiment("segformer", 2, seed=6))
    report = load_weights(target, tmp_path)
    assert_same(target, state(source))
    assert (report.missing, report.left_over) == ((), ())


def test_one_of_two_names_of_an_array_is_enough(tmp_path: Path) -> None:
    wanted = state(build_model(experiment("sam", 2)))
    del wanted["network.prompt_encoder.shared_embedding.positional_embedding"]
    save_file(wanted, tmp_path / "w.safetensors")
    assert load_weights(build_model(experiment("sam", 2, seed=6)), tmp_path / "w.safetensors").missing == ()


class _Code:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, ("raise SystemExit('this was run')",)


def test_a_file_that_holds_code_is_not_opened(tmp_path: Path) -> None:
    file = write(tmp_path / "w.pth", {"state_dict": {"weight": torch.ones(2)}, "trainer": _Code()})
    with pytest.raises(ConfigError, match=r"w\.pth holds more than tensors") as error:
        load_weights(network(), file)
    assert "safetensors" in error.value.fix


def test_nothing_that_fits_is_an_error(tmp_path: Path) -> None:
    save_file({"other.weight": torch.ones(3)}, tmp_path / "w.safetensors")
    before = network(2)
    target = network(2)
    with pytest.raises(ConfigError, match=r"nothing in .*w\.safetensors fits .* other\.weight \(3\)"):
        load_weights(target, tmp_path / "w.safetensors")
    assert_same(target, state(before))


def _touched(file: Path) -> Path:
    file.write_bytes(b"")
    return file


def _index(folder: Path) -> Path:
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "part-1.safetensors"}}')
    return folder


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda folder: folder / "none.pth", "no such file"),
        (lambda folder: folder, "neither model.safetensors nor"),
        (lambda folder: _touched(folder / "w.h5"), "ends in none of"),
        (lambda folder: _touched(folder / "model.safetensors.index.json").parent, "cannot be read"),
        (_index, r"lacks part-1\.safetensors"),
    ],
)
def test_a_wrong_path_is_answered(make, problem: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=problem) as error:
        find_weights(make(tmp_path))
    assert error.value.field == "transfer.weights"
    assert error.value.fix


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth"])
def test_a_damaged_file_is_refused_by_name(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"not weights")
    with pytest.raises(ConfigError, match=name):
        load_weights(network(), tmp_path / name)


def test_adapters_are_added_to_their_layers(tmp_path: Path) -> None:
    base, first, second = torch.randn(3, 4), torch.randn(2, 4), torch.randn(3, 2)
    adapted = {
        "layer.base_layer.weight": base,
        "layer.base_layer.bias": torch.ones(3),
        "layer.lora_A.default.weight": first,
        "layer.lora_B.default.weight": second,
    }
    about = {"experiment": json.dumps({"transfer": {"lora": {"rank": 2, "alpha": 8.0}}})}
    save_file(adapted, tmp_path / "w.safetensors", metadata=about)
    found = read_weights(tmp_path / "w.safetensors")
    assert sorted(found) == ["layer.bias", "layer.weight"]
    torch.testing.assert_close(found["layer.weight"], base + 4.0 * second @ first)
    save_file(adapted, tmp_path / "x.safetensors")
    with pytest.raises(ConfigError, match="adapters"):
        read_weights(tmp_path / "x.safetensors")
    assert len(load_file(tmp_path / "x.safetensors")) == 4


@pytest.mark.parametrize("length", [0, 1, 50])
def test_a_torch_file_cut_short_is_answered(length: int, tmp_path: Path) -> None:
    file = tmp_path / "w.pth"
    torch.save(state(network()), file, _use_new_zipfile_serialization=False)
    file.write_bytes(file.read_bytes()[:length])
    with pytest.raises(ConfigError, match=r"w\.pth holds more than tensors, or is damaged"):
        load_weights(network(), file)


def test_a_bias_without_its_weight_is_another_layers(tmp_path: Path) -> None:
    given = state(network(1))
    given["0.0.weight"] = torch.ones(4, 1, 5, 5)
    del given["0.1.weight"]
    save_file(given, tmp_path / "w.safetensors")
    target = network(2)
    before = state(target)
    report = load_weights(target, tmp_path / "w.safetensors")
    assert report.alone == ("0.0.bias", "0.1.bias", "0.1.running_mean", "0.1.running_var")
    assert set(report.loaded) == {"1.weight", "1.bias"}
    assert_same(target, {name: before[name] for name in report.alone})
    assert "4 in the file without their layer's weight" in " ".join(report.sentences())


@pytest.mark.parametrize("classes", [("liver", "spleen"), ("spleen", "liver"), ("aorta", "spine")])
def test_the_head_of_other_classes_starts_anew(classes: tuple[str, str], tmp_path: Path) -> None:
    file = tmp_path / "best.safetensors"
    about = experiment("unet", 2).order_text()
    save_file(state(network(1)), file, metadata={"experiment": about})
    target = network(2)
    before = state(target)
    report = load_weights(target, file, classes=classes, head=["1.*"])
    head = () if classes == ("liver", "spleen") else ("1.weight", "1.bias")
    assert report.of_other_classes == head
    assert_same(target, {name: before[name] for name in head})
    assert ("for other classes in the file" in " ".join(report.sentences())) == bool(head)
