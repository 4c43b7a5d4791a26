"""How activations and weights lie in memory: checkpointing and the order of channels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from math import ceil, sqrt
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

_LAYOUTS = {4: torch.channels_last, 5: torch.channels_last_3d}
_BATCH_NORM = nn.modules.batchnorm._BatchNorm
_LARGEST = 1 / 4
"""Of a network's layers that one block may hold."""
_LONG = 9


@contextmanager
def checkpointed(model: nn.Module) -> Iterator[None]:
    """Within, each block keeps its input alone, and computes its activations again in the backward pass.

    Chen et al. 2016, 'Training deep nets with sublinear memory cost', by ``torch.utils.checkpoint``. Gradients are the same; so
    are a batch norm's running statistics, which the second pass leaves alone.
    """
    chosen = blocks(model)
    for block in chosen:
        parts = _parts(block)
        block.forward = (
            _again(block) if len(parts) < 2 else partial(_in_order, [_again(part) for part in parts])
        )
    try:
        yield
    finally:
        for block in chosen:
            del block.forward


def blocks(model: nn.Module) -> list[nn.Module]:
    """What is checkpointed: what the network names in ``checkpoint_blocks()``, else its children.

    A child that holds more than a quarter of the network's layers would save little: its own children are taken in its place.
    Lists of modules stand for their members.
    """
    most = _LARGEST * sum(_is_layer(module) for module in model.modules())
    chosen: list[nn.Module] = []
    pending = _members(model)
    while pending:
        child = pending.pop(0)
        within = [] if sum(_is_layer(module) for module in child.modules()) <= most else _members(child)
        if all(_is_layer(member) for member in within):
            chosen.append(child)
        else:
            pending = within + pending
    return [block for block in chosen if next(block.parameters(), None) is not None]


def stages(model: nn.Module) -> list[nn.Module]:
    """What the network names in ``checkpoint_blocks()``, else its children; of one child that holds everything, that one's."""
    members = _members(model)
    while len(members) == 1 and _members(members[0]):
        members = _members(members[0])
    return [member for member in members if next(member.parameters(), None) is not None]


def _members(module: nn.Module) -> list[nn.Module]:
    named: Callable[[], list[nn.Module]] | None = getattr(module, "checkpoint_blocks", None)
    if named is not None:
        return named()
    members: list[nn.Module] = []
    for child in module.children():
        members += _members(child) if isinstance(child, nn.ModuleList | nn.ModuleDict) else [child]
    return members


def _is_layer(module: nn.Module) -> bool:
    return next(module.children(), None) is None


def _parts(block: nn.Module) -> list[nn.Module]:
    """A long column of single layers in about as many parts as each has layers; anything else whole."""
    if type(block) is not nn.Sequential or len(block) < _LONG or not all(map(_is_layer, block)):
        return [block]
    size = ceil(sqrt(len(block)))
    return [block[first : first + size] for first in range(0, len(block), size)]


def _again(block: nn.Module) -> Callable[..., Any]:
    return partial(checkpoint, block.forward, use_reentrant=False, context_fn=partial(_twice, block))


def _in_order(parts: Sequence[Callable[[Tensor], Tensor]], maps: Tensor) -> Tensor:
    for part in parts:
        maps = part(maps)
    return maps


def _twice(block: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    return nullcontext(), _same_statistics(block)


@contextmanager
def _same_statistics(block: nn.Module) -> Iterator[None]:
    """Within, batch norms measure into copies that are thrown away."""
    norms = [norm for norm in block.modules() if isinstance(norm, _BATCH_NORM)]
    kept = [(norm, name, buffer) for norm in norms for name, buffer in norm.named_buffers(recurse=False)]
    for norm, name, buffer in kept:
        setattr(norm, name, buffer.clone())
    try:
        yield
    finally:
        for norm, name, buffer in kept:
            setattr(norm, name, buffer)


def lay_channels_last(model: nn.Module) -> None:
    """Weights of convolutions with their channels side by side, as GPUs read them fastest; in place, the numbers are the same."""
    for parameter in model.parameters():
        parameter.data = channels_last(parameter.data)


def channels_last(tensor: Tensor) -> Tensor:
    """``(B, C, ...)`` with channels side by side in memory; what is neither an image nor a volume is as it was."""
    layout = _LAYOUTS.get(tensor.dim())
    return tensor if layout is None else tensor.contiguous(memory_format=layout)
