"""Activation checkpointing: less is kept for the backward pass, and the network is as it was afterwards."""

from __future__ import annotations

import gc
from collections.abc import Callable
from itertools import accumulate

import pytest
import torch
from architectures import SMALL, experiment
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.profiler import ProfilerActivity, profile

from fedmed_client.engine.memory import blocks, channels_last, checkpointed
from fedmed_common.catalogue import ARCHITECTURES
from fedmed_common.models import build_model


class Chain(nn.Module):
    """A column of stages, in the way that the test asks for."""

    def __init__(self, *, nested: bool = False, listed: bool = False) -> None:
        super().__init__()
        stages = [
            nn.Sequential(
                nn.Conv2d(4, 16, 3, padding=1), nn.ReLU(), nn.BatchNorm2d(16), nn.Conv2d(16, 4, 1), nn.ReLU()
            )
            for _ in range(3)
        ]
        inner = nn.ModuleList(stages) if listed else nn.Sequential(*stages)
        self.body = nn.Sequential(inner) if nested else inner
        self.listed = listed

    def forward(self, image: Tensor) -> Tensor:
        if not self.listed:
            return self.body(image)
        for stage in self.body:
            image = stage(image)
        return image


def kept_bytes(model: nn.Module, image: Tensor) -> int:
    """What the forward pass keeps for the backward pass, each storage once."""
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    with saved_tensors_hooks(pack, lambda tensor: tensor):
        model(image).sum().backward()
    return sum(size for place, size in storages.items() if place not in weights)


@pytest.mark.parametrize("shape", [{}, {"nested": True}, {"listed": True}])
def test_less_is_kept_and_gradients_and_statistics_are_the_same(shape: dict[str, bool]) -> None:
    torch.manual_seed(0)
    model, image = Chain(**shape), torch.randn(2, 4, 32, 32)
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    plain = kept_bytes(model, image)
    gradients = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.load_state_dict(start)
    model.zero_grad()
    with checkpointed(model):
        less = kept_bytes(model, image)
    assert less < plain / 4
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        assert parameter.grad is not None
        assert torch.equal(parameter.grad, gradient)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[name]), name
    assert kept_bytes(model, image) == plain


def test_a_network_names_its_own_blocks() -> None:
    model = Chain()
    model.checkpoint_blocks = lambda: [model.body[1]]
    assert blocks(model) == [model.body[1]]


def step(name: str, dimensions: int) -> tuple[nn.Module, Callable[[], None]]:
    """A network, and a step of it that leaves gradients."""
    asked = experiment(name, dimensions)
    network = build_model(asked).train()
    image = torch.randn(2, 1, *asked.data.patch, generator=torch.Generator().manual_seed(1))

    def once() -> None:
        torch.manual_seed(2)
        network.zero_grad()
        given = network(image)
        sum(logits.square().mean() for logits in (given if isinstance(given, tuple) else [given])).backward()

    return network, once


def highest(network: nn.Module, once: Callable[[], None]) -> int:
    """The most bytes that the step holds at once beyond those that it began with, without what others leave to be collected."""
    network.zero_grad()
    gc.collect()
    gc.disable()
    try:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            once()
    finally:
        gc.enable()
    assert profiler.profiler is not None
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    changes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    return max(accumulate(changes))


@pytest.mark.parametrize("name", list(SMALL))
def test_each_architecture_learns_the_same(name: str) -> None:
    network, once = step(name, min(ARCHITECTURES[name].dimensions))
    once()
    plain = {key: parameter.grad for key, parameter in network.named_parameters()}
    with checkpointed(network):
        once()
    assert len(blocks(network)) > 1
    for key, parameter in network.named_parameters():
        wanted = plain[key]
        assert (parameter.grad is None) == (wanted is None)
        assert wanted is None or torch.equal(parameter.grad, wanted), key


@pytest.mark.parametrize(
    ("name", "dimensions"),
    [
        ("densenet", 2),
        ("efficientnet", 2),
        ("xception", 2),
        ("unetr", 3),
        ("convlstm", 3),
        ("cascade", 3),
    ],
)
def test_a_step_needs_less_memory(name: str, dimensions: int) -> None:
    network, once = step(name, dimensions)
    once()
    plain = highest(network, once)
    with checkpointed(network):
        assert highest(network, once) < plain


def test_what_is_no_image_keeps_its_layout() -> None:
    table = torch.randn(3, 5)
    assert channels_last(table) is table
    volume = torch.randn(2, 3, 4, 5, 6)
    assert torch.equal(channels_last(volume), volume)
    assert channels_last(volume).is_contiguous(memory_format=torch.channels_last_3d)
