"""Networks made of several: their sizes by hand, and what is peculiar to each."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from itertools import pairwise
from typing import Any

import pytest
import torch
from architectures import experiment
from torch import Tensor, nn

from fedmed_common import params, wire
from fedmed_common.catalogue.base import Architecture, Plan
from fedmed_common.catalogue.composed import Adversarial, Cascade, ConvLSTM, Ensemble, Planes
from fedmed_common.config import Experiment
from fedmed_common.models import build_model
from fedmed_common.models.adversarial import reversed_gradient
from fedmed_common.models.convlstm import Cell
from fedmed_common.models.planes import slices_of, volume_of
from fedmed_common.tasks import build_task

CHANNELS = (8, 16, 32)


def count(model: Architecture, dimensions: Any) -> int:
    """Parameters with one channel and three outputs, without memory for them."""
    plan = Plan(dimensions=dimensions, in_channels=1, outputs=3, patch=(32,) * dimensions)
    with torch.device("meta"):
        network = import_module(model.module).build(model, plan)
    return sum(parameter.numel() for parameter in network.parameters())


def unet(dimensions: int, entering: int, channels: Sequence[int] = CHANNELS, outputs: int = 3) -> int:
    """Ronneberger et al. 2015, figure 1: two 3x3 convolutions a level, 2x2 up-convolutions, 1x1 logits; a norm for a bias."""

    def double(before: int, after: int) -> int:
        return 3**dimensions * (before * after + after * after) + 2 * 2 * after

    down = sum(double(*pair) for pair in pairwise((entering, *channels)))
    up = sum(below * here * 2**dimensions + here for here, below in pairwise(channels))
    right = sum(double(2 * here, here) for here in channels[:-1])
    return down + up + right + (channels[0] + 1) * outputs


@pytest.mark.parametrize("dimensions", [2, 3])
def test_as_many_parameters_as_their_parts(dimensions: int) -> None:
    """The papers use networks of their own as parts, and give no figure that ours could have."""
    nine = 3**dimensions
    one = unet(dimensions, 1)
    assert count(Ensemble(channels=CHANNELS, members=4), dimensions) == 4 * one
    both = unet(dimensions, 1, (4, 8)) + unet(dimensions, 1 + 3)
    assert count(Cascade(channels=CHANNELS, coarse_channels=(4, 8)), dimensions) == both
    discriminator = (nine * (1 + 3) * 4 + 4) + (nine * 4 * 6 + 2 * 6) + (6 + 1)
    assert count(Adversarial(channels=CHANNELS, discriminator=(4, 6)), dimensions) == one + discriminator


def test_as_many_parameters_as_their_slices_need() -> None:
    """Three views of three neighbouring slices; four gates from input and state in two directions, joined."""
    assert count(Planes(channels=CHANNELS), 3) == 3 * unet(2, 3)
    assert count(Planes(channels=CHANNELS, neighbours=0, fusion="learned"), 3) == 3 * unet(2, 1) + 3 * (9 + 1)
    level = {
        number: 2 * (2 * 9 * number * 4 * number + 4 * number) + (2 * number + 1) * number
        for number in CHANNELS
    }
    assert count(ConvLSTM(channels=CHANNELS), 3) == unet(2, 1) + level[32]
    assert count(ConvLSTM(channels=CHANNELS, recurrent="all"), 3) == unet(2, 1) + sum(level.values())


def batch(asked: Experiment) -> tuple[Tensor, Tensor, Tensor]:
    """Two images, their labels, and all classes annotated."""
    rng = torch.Generator().manual_seed(2)
    image = torch.randn(2, asked.data.channels, *asked.data.patch, generator=rng)
    label = torch.randint(0, 3, (2, *asked.data.patch), generator=rng)
    return image, label, torch.ones(2, 2, dtype=torch.bool)


def gradients(network: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    network.zero_grad(set_to_none=True)
    loss.backward()
    return {
        name: weight.grad.clone() for name, weight in network.named_parameters() if weight.grad is not None
    }


def part(found: dict[str, Tensor], name: str) -> Tensor:
    return torch.cat([gradient.flatten() for key, gradient in found.items() if key.startswith(f"{name}.")])


def test_a_reversed_gradient_is_that_times_minus_the_weight() -> None:
    maps = torch.randn(5, requires_grad=True)
    out = reversed_gradient(maps, 0.25)
    assert torch.equal(out, maps)
    out.sum().backward()
    assert maps.grad is not None
    assert torch.equal(maps.grad, torch.full((5,), -0.25))


def test_the_discriminator_learns_from_its_own_term_alone() -> None:
    """And the U-Net from its loss and, reversed and times the weight, from that term."""
    grads = {}
    for weight in (0.0, 0.5, 1.0):
        asked = experiment("adversarial", 2, weight=weight)
        image, label, known = batch(asked)
        network = build_model(asked).double().train()
        extra = network.objective_extra(image.double(), network(image.double()), label, known)  # type: ignore[operator]
        assert extra.shape == (2,)
        own = gradients(network, extra.mean())
        total = gradients(network, build_task(asked).objective(network, image.double(), label, known))
        torch.testing.assert_close(part(total, "discriminator"), part(own, "discriminator"))
        grads[weight] = part(total, "segmentor"), part(own, "discriminator")
    (plain, first), (half, second), (whole, third) = grads.values()
    assert torch.equal(first, second)
    assert torch.equal(second, third)
    assert float((whole - plain).norm()) > 0
    torch.testing.assert_close(whole - plain, 2 * (half - plain), rtol=1e-4, atol=1e-9)


def test_a_step_of_the_discriminator_tells_labels_better_and_one_of_the_unet_less_well() -> None:
    asked = experiment("adversarial", 2, weight=1.0)
    image, label, known = batch(asked)
    image = image.double()

    def term(network: nn.Module) -> Tensor:
        loss: Tensor = network.objective_extra(image, network(image), label, known).mean()  # type: ignore[operator]
        return loss

    for name, sign in (("discriminator", -1), ("segmentor", 1)):
        network = build_model(asked).double().train()
        before = term(network)
        found = gradients(network, before)
        with torch.no_grad():
            for key, weight in network.named_parameters():
                if key.startswith(name):
                    weight.sub_(1e-3 * found[key] / part(found, name).norm())
        assert sign * float(term(network).detach() - before.detach()) > 0


def test_what_nobody_looked_at_tells_the_discriminator_nothing() -> None:
    """Other logits of an unlabelled voxel, and another class of those that were not annotated, change nothing."""
    asked = experiment("adversarial", 2)
    image, label, known = batch(asked)
    network = build_model(asked).train()
    label[:, :4] = 255
    logits = network(image).detach()
    other = logits.clone()
    other[:, :, :4] = torch.randn(2, 3, 4, logits.shape[-1])
    extra = network.objective_extra
    assert torch.equal(extra(image, logits, label, known), extra(image, other, label, known))  # type: ignore[operator]
    known[:, 1] = False
    hidden = label.where(label != 2, 0)
    assert torch.equal(extra(image, logits, label, known), extra(image, logits, hidden, known))  # type: ignore[operator]


def test_neither_is_lost_on_the_wire() -> None:
    asked = experiment("adversarial", 3)
    source, target = build_model(asked), build_model(experiment("adversarial", 3, seed=6))
    order: dict[str, Any] = {"run": "r", "round": 1, "attempt": 0, "experiment": asked.order_text()}
    sent = wire.Order(kind=wire.Kind.TRAIN, parameters=params.from_model(source), **order)
    params.to_model(wire.unpack_order(wire.pack_order(sent), wire.Kind.TRAIN).parameters, target)
    halves = {name.split(".")[0] for name in params.trained(source)}
    assert halves == {"segmentor", "discriminator"}
    assert all(torch.equal(value, target.state_dict()[key]) for key, value in source.state_dict().items())


def test_the_fine_network_sees_what_the_coarse_one_said() -> None:
    asked = experiment("cascade", 2)
    image, *_ = batch(asked)
    network = build_model(asked).eval()
    coarse, fine = network.get_submodule("coarse"), network.get_submodule("fine")
    with torch.no_grad():
        guess = coarse(nn.functional.avg_pool2d(image, 2)).softmax(1)
        guess = nn.functional.interpolate(guess, image.shape[2:], mode="bilinear")
        before = network(image)
        assert torch.equal(before, fine(torch.cat([image, guess], 1)))
        coarse.get_parameter("head.bias")[0] += 3.0
        assert not torch.equal(network(image), before)


def test_the_fine_networks_loss_does_not_reach_the_coarse_one() -> None:
    asked = experiment("cascade", 2)
    image, *_ = batch(asked)
    network = build_model(asked).train()
    fine, coarse = network(image)
    assert coarse.shape[2:] == tuple(size // 2 for size in asked.data.patch)
    assert {name.split(".")[0] for name in gradients(network, fine.square().mean())} == {"fine"}
    assert {name.split(".")[0] for name in gradients(network, network(image)[1].square().mean())} == {
        "coarse"
    }


def test_an_ensemble_is_the_mean_of_its_members() -> None:
    asked = experiment("ensemble", 2, members=((4, 6), (6, 8, 10), (4, 4)))
    image, *_ = batch(asked)
    network = build_model(asked).eval()
    members = network.get_submodule("members")
    assert isinstance(members, nn.ModuleList)
    with torch.no_grad():
        each = torch.stack([member(image).softmax(1) for member in members])
        torch.testing.assert_close(network(image).softmax(1), each.mean(0))
    assert not torch.allclose(each[0], each[2])


def test_a_member_learns_as_if_alone() -> None:
    asked = experiment("ensemble", 2, members=2)
    image, label, known = batch(asked)
    network, task = build_model(asked).double().train(), build_task(asked)
    image = image.double()
    together = gradients(network, task.objective(network, image, label, known))
    members = network.get_submodule("members")
    assert isinstance(members, nn.ModuleList)
    for place, member in enumerate(members):
        alone = gradients(member, task.objective(member, image, label, known))
        for name, gradient in alone.items():
            torch.testing.assert_close(
                2 * together[f"members.{place}.{name}"], gradient, rtol=1e-5, atol=1e-8
            )


@pytest.mark.parametrize("axis", [2, 3, 4])
def test_slices_across_each_axis_come_back_where_they_were(axis: int) -> None:
    volume = torch.randn(2, 3, 4, 5, 6)
    slices = slices_of(volume, axis, 1)
    count = volume.shape[axis]
    assert slices.shape == (
        2 * count,
        9,
        *[size for place, size in enumerate(volume.shape) if place not in (0, 1, axis)],
    )
    assert torch.equal(volume_of(slices[:, 3:6], axis, count), volume)
    below = volume_of(slices[:, :3], axis, count)
    assert torch.equal(below.narrow(axis, 1, count - 1), volume.narrow(axis, 0, count - 1))
    assert torch.equal(below.select(axis, 0), volume.select(axis, 0))


def test_three_planes_are_three_networks_on_orthogonal_slices() -> None:
    """Each view's logits of one slice are its network's of that slice and its two neighbours; their mean is the result."""
    asked = experiment("planes", 3)
    image, *_ = batch(asked)
    network = build_model(asked).eval()
    views = network.get_submodule("views")
    assert isinstance(views, nn.ModuleList)
    with torch.no_grad():
        fused = network(image)
        each = list(network.train()(image)[1:])
        axial = views[0](image[:, 0, :, :, 2:5].permute(0, 3, 1, 2))
        coronal = views[1](image[:, 0, :, 2:5].permute(0, 2, 1, 3))
        sagittal = views[2](image[:, 0, 2:5])
    close = {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(each[0][..., 3], axial, **close)
    torch.testing.assert_close(each[1][:, :, :, 3], coronal, **close)
    torch.testing.assert_close(each[2][:, :, 3], sagittal, **close)
    torch.testing.assert_close(fused, torch.stack([logits.log_softmax(1) for logits in each]).mean(0))


def test_learned_fusion_starts_as_the_mean() -> None:
    mean, learned = (
        build_model(experiment("planes", 3, fusion=fusion)).eval() for fusion in ("mean", "learned")
    )
    learned.load_state_dict(mean.state_dict(), strict=False)
    image, *_ = batch(experiment("planes", 3))
    with torch.no_grad():
        torch.testing.assert_close(learned(image), mean(image))


def reached(network: nn.Module, asked: Experiment) -> set[int]:
    """The slices on which the logits of slice 2 depend."""
    image = batch(asked)[0][:1].requires_grad_()
    (gradient,) = torch.autograd.grad(network(image)[..., 2].square().sum(), image)
    return {place for place in range(image.shape[-1]) if bool(gradient[..., place].any())}


def test_a_slice_knows_all_others_through_the_recurrence() -> None:
    """Without its hidden weights each slice is on its own; with those of one direction it knows the slices on that side."""
    asked = experiment("convlstm", 3, norm="group")
    network = build_model(asked).eval()
    assert reached(network, asked) == {0, 1, 2, 3, 4}
    cells = {name: cell for name, cell in network.named_modules() if isinstance(cell, Cell)}
    assert sorted(name.split(".")[-1] for name in cells) == ["down", "up"]
    for direction, known in (("down", {0, 1, 2}), ("up", {2})):
        cell = next(cell for name, cell in cells.items() if name.endswith(direction))
        nn.init.zeros_(cell.of_hidden.weight)
        forget = slice(cell.of_hidden.in_channels, 2 * cell.of_hidden.in_channels)
        with torch.no_grad():
            cell.of_input.weight[forget] = 0.0
            assert cell.of_input.bias is not None
            cell.of_input.bias[forget] = -torch.inf
        assert reached(network, asked) == known


def test_the_order_of_the_slices_matters() -> None:
    asked = experiment("convlstm", 3)
    image, *_ = batch(asked)
    network = build_model(asked).eval()
    order = [3, 0, 4, 1, 2]
    with torch.no_grad():
        assert not torch.allclose(network(image[..., order]), network(image)[..., order], atol=1e-4)


def test_a_cell_is_the_papers_recurrence() -> None:
    """Shi et al. 2015, equation 3, without peepholes, slice by slice."""
    cell = Cell(3, backwards=False).double()
    slices = torch.randn(2, 4, 3, 5, 6, dtype=torch.float64)
    hidden = memory = torch.zeros(2, 3, 5, 6, dtype=torch.float64)
    with torch.no_grad():
        found = cell(slices)
        for place in range(4):
            i, f, o, g = (cell.of_input(slices[:, place]) + cell.of_hidden(hidden)).split(3, dim=1)
            memory = torch.sigmoid(f) * memory + torch.sigmoid(i) * torch.tanh(g)
            hidden = torch.sigmoid(o) * torch.tanh(memory)
            torch.testing.assert_close(found[:, place], hidden)
        backwards = Cell(3, backwards=True).double()
        backwards.load_state_dict(cell.state_dict())
        torch.testing.assert_close(backwards(slices.flip(1)), found.flip(1))


def test_any_number_of_slices_is_taken() -> None:
    asked = experiment("convlstm", 3)
    with torch.no_grad():
        assert build_model(asked).eval()(torch.randn(1, 1, 16, 8, 3)).shape == (1, 3, 16, 8, 3)
