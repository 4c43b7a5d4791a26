"""What a network costs: its parameters, and the multiply-adds of one patch."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fedmed_common.catalogue import Architecture, Plan
from fedmed_common.monai_import import load_monai


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """``multiply_adds``: of one sample, in convolutions, matrix products and attention. ``private``: why patient-level privacy
    is refused, or empty."""

    parameters: int
    multiply_adds: int
    private: str


def figures_of(settings: Architecture, plan: Plan) -> Figures:
    """Build the network without memory for its weights, send one patch through it, and count."""
    load_monai()
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        network: nn.Module = import_module(settings.module).build(settings, plan)
        network.eval()
        counter = FlopCounterMode(display=False)
        with counter, torch.no_grad():
            network(torch.empty(1, plan.in_channels, *plan.patch))
    return Figures(
        parameters=count(network), multiply_adds=counter.get_total_flops() // 2, private=coupling(network)
    )


def count(network: nn.Module) -> int:
    """How many numbers the network learns, frozen ones too; a tensor that two layers share counts once."""
    return sum(parameter.numel() for parameter in network.parameters())


def coupling(network: nn.Module) -> str:
    """What joins the patients of a batch, so that no noise hides one of them; empty where nothing does."""
    for name, layer in network.named_modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            return f"{name} is a batch norm"
    return ""
