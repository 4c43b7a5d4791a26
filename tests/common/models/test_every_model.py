"""Every architecture passes the same tester, in each of its dimensions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from architectures import EACH, SMALL, experiment
from pydantic import ValidationError

from fedmed_common import params, wire
from fedmed_common.catalogue import ARCHITECTURES
from fedmed_common.config import Experiment
from fedmed_common.models import build_model
from fedmed_common.models.export import write_onnx
from fedmed_common.tasks import build_task

each = pytest.mark.parametrize(("name", "dimensions"), EACH, ids=str)


def images(asked: Experiment, count: int = 2) -> torch.Tensor:
    rng = torch.Generator().manual_seed(3)
    return torch.randn(count, asked.data.channels, *asked.data.patch, generator=rng)


def targets(asked: Experiment, count: int = 2) -> torch.Tensor:
    rng = torch.Generator().manual_seed(4)
    if asked.task.name == "classification":
        return torch.randint(0, 2, (count, len(asked.task.classes)), generator=rng)
    return torch.randint(0, 1 + len(asked.task.classes), (count, *asked.data.patch), generator=rng)


def annotated(asked: Experiment, count: int = 2) -> torch.Tensor:
    return torch.ones(count, len(asked.task.classes), dtype=torch.bool)


def shape(asked: Experiment, count: int = 2) -> tuple[int, ...]:
    if asked.task.name == "classification":
        return count, len(asked.task.classes)
    return count, 1 + len(asked.task.classes), *asked.data.patch


def outputs(network: torch.nn.Module, asked: Experiment) -> torch.Tensor:
    network.eval()
    with torch.no_grad():
        result = network(images(asked))
    assert isinstance(result, torch.Tensor)
    return result


def gradients(network: torch.nn.Module, asked: Experiment, places: slice) -> dict[str, torch.Tensor]:
    network.zero_grad(set_to_none=True)
    task = build_task(asked)
    image, target, known = images(asked)[places], targets(asked)[places], annotated(asked)[places]
    image = image.to(next(network.parameters()).dtype)
    (task.objective(network, image, target, known) * len(image)).backward()
    return {
        name: parameter.grad.clone()
        for name, parameter in network.named_parameters()
        if parameter.requires_grad and parameter.grad is not None
    }


def test_each_has_a_small_form() -> None:
    assert sorted(SMALL) == sorted(ARCHITECTURES)


@each
@pytest.mark.parametrize("norm", ["instance", "group", "batch"])
def test_gives_logits_in_each_norm(name: str, dimensions: int, norm: str) -> None:
    asked = experiment(name, dimensions, norm=norm)
    logits = outputs(build_model(asked), asked)
    assert logits.shape == shape(asked)
    assert logits.isfinite().all()


@each
def test_takes_several_channels(name: str, dimensions: int) -> None:
    asked = experiment(name, dimensions, channels=3)
    assert outputs(build_model(asked), asked).shape == shape(asked)


@each
def test_every_parameter_learns(name: str, dimensions: int) -> None:
    asked = experiment(name, dimensions)
    network = build_model(asked).train()
    found = gradients(network, asked, slice(None))
    wanted = {key for key, parameter in network.named_parameters() if parameter.requires_grad}
    assert wanted - set(found) == set()
    assert all(gradient.isfinite().all() for gradient in found.values())
    assert any(gradient.abs().sum() > 0 for gradient in found.values())


@each
def test_other_sizes_are_taken_or_refused(name: str, dimensions: int) -> None:
    asked = experiment(name, dimensions)
    odd = SMALL[name].odd.get(dimensions)
    if odd is None:
        wrong = asked.model_dump(mode="json", exclude={"simulation", "tracking"})
        wrong["data"]["patch"] = [size + 1 for size in asked.data.patch]
        with pytest.raises(ValidationError, match=r"data\.patch .* is not a multiple of|is less than"):
            Experiment.model_validate(wrong)
        return
    taken = asked.model_copy(update={"data": asked.data.model_copy(update={"patch": odd})})
    taken.model.check(taken.plan)
    assert outputs(build_model(taken), taken).shape == shape(taken)


@each
def test_the_seed_alone_decides(name: str, dimensions: int) -> None:
    asked, other = experiment(name, dimensions), experiment(name, dimensions, seed=6)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = params.from_model(build_model(asked))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    second = params.from_model(build_model(asked))
    assert all(np.array_equal(first[key], second[key]) for key in first)
    third = params.from_model(build_model(other))
    assert any(not np.array_equal(first[key], third[key]) for key in first)
    assert torch.equal(outputs(build_model(asked), asked), outputs(build_model(asked), asked))


@each
def test_survives_the_wire(name: str, dimensions: int) -> None:
    asked = experiment(name, dimensions)
    source, target = build_model(asked), build_model(experiment(name, dimensions, seed=6))
    order: dict[str, Any] = {"run": "r", "round": 1, "attempt": 0, "experiment": asked.order_text()}
    sent = wire.Order(kind=wire.Kind.TRAIN, parameters=params.from_model(source), **order)
    received = wire.unpack_order(wire.pack_order(sent), wire.Kind.TRAIN)
    params.to_model(received.parameters, target)
    assert torch.equal(outputs(source, asked), outputs(target, asked))


@each
def test_patients_add_up(name: str, dimensions: int) -> None:
    """The gradient of a batch is the sum of its patients' own: nothing in the network or the loss joins them.

    In float64: in float32 the norms of maps of a few voxels, and ties of pooling, turn roundings into visible differences.
    """
    asked = experiment(name, dimensions)
    network = build_model(asked).train().double()
    for layer in network.modules():
        if isinstance(layer, torch.nn.modules.dropout._DropoutNd):
            layer.p = 0.0
    both = gradients(network, asked, slice(None))
    alone = [gradients(network, asked, slice(place, place + 1)) for place in range(2)]
    together = torch.cat([both[key].flatten() for key in sorted(both)])
    apart = torch.cat([sum(part[key] for part in alone).flatten() for key in sorted(both)])  # type: ignore[union-attr]
    assert float((together - apart).norm() / together.norm()) <= 1e-6


EXPORTED = [name for name, kind in ARCHITECTURES.items() if kind.exports and name in SMALL]
AT_ONCE = {"unet", "resnet", "vit"}


@pytest.mark.parametrize(
    "name", [name if name in AT_ONCE else pytest.param(name, marks=pytest.mark.slow) for name in EXPORTED]
)
def test_onnx_gives_the_same_output(name: str, tmp_path: Path) -> None:
    asked = experiment(name, ARCHITECTURES[name].dimensions[0])
    network = build_model(asked)
    write_onnx(network, asked, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"image": images(asked, 3).numpy()})
    network.eval()
    with torch.no_grad():
        wanted = network(images(asked, 3)).numpy()
    assert np.abs(logits - wanted).max() <= 1e-3 * np.abs(wanted).max()
