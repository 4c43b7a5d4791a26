"""How activations and weights lie in memory: checkpointing and the order of channels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

_LAYOUTS = {4: torch.channels_last, 5: torch.channels_last_3d}
_BATCH_NORM = nn.modules.batchnorm._BatchNorm


@contextmanager
def checkpointed(model: nn.Module) -> Iterator[None]:
    """Within, each block keeps its input alone, and computes its activations again in the backward pass.

    Chen et al. 2016, 'Training deep nets with sublinear memory cost', by ``torch.utils.checkpoint``. Gradients are the same; so
    are a batch norm's running statistics, which the second pass leaves alone.
    """
    chosen = blocks(model)
    for block in chosen:
        forward: Callable[..., Any] = block.forward
        again = partial(_twice, block)
        block.forward = partial(checkpoint, forward, use_reentrant=False, context_fn=again)
    try:
        yield
    finally:
        for block in chosen:
            del block.forward


def blocks(model: nn.Module) -> list[nn.Module]:
    """What is checkpointed: what the network names in ``checkpoint_blocks()``, else its top-level children.

    One child that holds everything would save nothing: its own children are taken. Lists of modules stand for their members.
    """
    named: Callable[[], list[nn.Module]] | None = getattr(model, "checkpoint_blocks", None)
    if named is not None:
        return named()
    children = _members(model)
    while len(children) == 1 and _members(children[0]):
        children = _members(children[0])
    return [child for child in children if next(child.parameters(), None) is not None]


def _members(module: nn.Module) -> list[nn.Module]:
    members: list[nn.Module] = []
    for child in module.children():
        members += _members(child) if isinstance(child, nn.ModuleList | nn.ModuleDict) else [child]
    return members


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
