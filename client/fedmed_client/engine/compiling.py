"""Kernels made for the experiment's network, by ``torch.compile``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from fedmed_common.errors import ConfigError


def compiled(model: nn.Module, backend: str | Callable[..., Any] = "inductor") -> nn.Module:
    """A module that calls compiled kernels with the model's own parameters; the model keeps its names, and runs as before.

    Compiling happens at the first call, and takes a minute or so. Each size of a batch is compiled for itself.
    """
    network: nn.Module = torch.compile(model, backend=backend, dynamic=False)  # type: ignore[assignment]
    return network


@contextmanager
def said_by_its_field() -> Iterator[None]:
    """Within, what torch cannot compile is an error that names the field.

    Raises:
        ConfigError: ``train.compile``.
    """
    from torch._dynamo.exc import TorchDynamoException
    from torch._inductor.exc import CppCompileError, InvalidCxxCompiler

    try:
        yield
    except (TorchDynamoException, CppCompileError, InvalidCxxCompiler) as error:
        raise ConfigError(
            f"the network cannot be compiled on this machine ({type(error).__name__}: {str(error).splitlines()[0]})",
            field="train.compile",
            fix="set it to false, or install a C++ compiler if that is what is missing",
        ) from error
