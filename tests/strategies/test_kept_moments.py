"""Training in two parts with what was kept between them is training in one."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from fedmed_strategies.corrections.kept_moments import KeptMoments
from fedmed_strategies.pieces import Memory

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adamw": lambda parameters: torch.optim.AdamW(parameters, 1e-2, weight_decay=0.1),
    "adam": lambda parameters: torch.optim.Adam(parameters, 1e-2),
    "momentum": lambda parameters: torch.optim.SGD(parameters, 1e-2, momentum=0.9),
    "sgd": lambda parameters: torch.optim.SGD(parameters, 1e-2),
}


def network() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
    model[0].bias.requires_grad_(False)
    return model


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, first: int, last: int) -> None:
    for step in range(first, last):
        torch.manual_seed(100 + step)
        optimizer.zero_grad()
        model(torch.randn(5, 4)).square().mean().backward()
        optimizer.step()


def rounds(model: nn.Module, make: Callable[..., torch.optim.Optimizer], kept: bool) -> Memory:
    memory: Memory = {}
    for number in range(2):
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        named = {name: p for name, p in model.named_parameters() if p.requires_grad}
        work: Any = SimpleNamespace(parameters=named, memory=memory if kept else {})
        half, optimizer = KeptMoments().at_site(work), make(trained)
        half.begin()
        half.take(optimizer)
        steps(model, optimizer, 5 * number, 5 * number + 5)
        left = half.finish({})
        assert not left.sums
        assert not left.scalars
        memory = left.memory
    return memory


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_two_rounds_are_one_training(name: str) -> None:
    make = OPTIMIZERS[name]
    whole, parts, afresh = network(), network(), network()
    steps(whole, make([p for p in whole.parameters() if p.requires_grad]), 0, 10)
    memory = rounds(parts, make, kept=True)
    rounds(afresh, make, kept=False)
    for one, other in zip(whole.parameters(), parts.parameters(), strict=True):
        assert torch.equal(one, other)
    same = all(
        torch.equal(one, other) for one, other in zip(whole.parameters(), afresh.parameters(), strict=True)
    )
    assert same == (name == "sgd")
    assert bool(memory) == (name != "sgd")
    assert all(key.startswith("kept_moments/") and "0.bias" not in key for key in memory)
