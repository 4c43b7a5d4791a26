"""Which part of a network training changes: all of it, its head, what is not frozen, or low-rank adapters.

What is frozen gets no gradient, no optimizer step and no place in a site's reply. A batch norm whose scale is frozen stays in
evaluation mode, so that its running statistics stay as they are.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from fedmed_common.config import Experiment, Lora
from fedmed_common.errors import ConfigError

_ADAPTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def apply_transfer(network: nn.Module, experiment: Experiment) -> None:
    """Freeze, and put in adapters, as the experiment's ``transfer`` asks. Adapters are drawn from the default generator.

    With ``lora``, the adapters are trained and, for its weights were drawn at random, the head; nothing else is. A layer of the
    head gets no adapter. What the architecture itself keeps frozen, as SAM's image encoder, stays so.

    Raises:
        ConfigError: a pattern matches nothing, or nothing is left to train.
    """
    asked = experiment.transfer
    names = [name for name, _ in network.named_parameters()]
    head = {name for name in names if matches_any(name, experiment.model.head)}
    frozen: set[str] = set()
    if asked.train == "head" or asked.lora is not None:
        frozen |= set(names) - head
    frozen |= _matching(names, asked.freeze, "transfer.freeze")
    trainable = {name for name, parameter in network.named_parameters() if parameter.requires_grad} - frozen
    if asked.lora is not None:
        targets = asked.lora.targets or experiment.model.attention
        _adapt(network, asked.lora, targets, head)
    for name, parameter in network.named_parameters():
        is_adapter = ".lora_" in name
        parameter.requires_grad_(is_adapter or name in trainable)
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise ConfigError(
            "nothing is left to train", field="transfer.freeze", fix="take patterns out of transfer.freeze"
        )
    hold_statistics(network)


def _adapt(network: nn.Module, lora: Lora, targets: Sequence[str], head: set[str]) -> None:
    """Low-rank adapters beside the layers that the patterns name; the second of each pair begins as zeros, so that at first
    nothing changes (Hu et al. 2022, section 4.1). A convolution in groups is no one matrix, and gets none.

    Raises:
        ConfigError: a pattern matches nothing, or all together only layers of the head.
    """
    from peft import LoraConfig, inject_adapter_in_model

    field = "transfer.lora.targets"
    layers = [name for name, module in network.named_modules() if _is_adaptable(module)]
    chosen = {name for name in _matching(layers, targets, field) if f"{name}.weight" not in head}
    if not chosen:
        raise ConfigError(
            f"{', '.join(targets)} matches the head alone, which is trained whole",
            field=field,
            fix='name other layers, or set transfer.train = "head" in place of [transfer.lora]',
        )
    exactly = "|".join(re.escape(name) for name in sorted(chosen))
    settings: dict[str, Any] = {"r": lora.rank, "lora_alpha": lora.alpha, "lora_dropout": lora.dropout}
    inject_adapter_in_model(LoraConfig(target_modules=exactly, **settings), network)


def _is_adaptable(module: nn.Module) -> bool:
    return isinstance(module, _ADAPTED) and getattr(module, "groups", 1) == 1


def matches_any(name: str, patterns: Sequence[str]) -> bool:
    """Whether one of the patterns stands for the name."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _matching(names: Iterable[str], patterns: Sequence[str], field: str) -> set[str]:
    """The names that any of the patterns matches.

    Raises:
        ConfigError: a pattern matches none.
    """
    known = list(names)
    found: set[str] = set()
    for pattern in patterns:
        matched = {name for name in known if fnmatchcase(name, pattern)}
        if not matched:
            near = difflib.get_close_matches(pattern, known, n=3, cutoff=0.3) or known[:3]
            raise ConfigError(
                f"'{pattern}' matches nothing in the network",
                field=field,
                fix=f"names are as {', '.join(near)}; * stands for any part",
            )
        found |= matched
    return found


def hold_statistics(network: nn.Module) -> None:
    """Keep the batch norms whose scale is frozen in evaluation mode, in place."""
    for module in network.modules():
        if isinstance(module, _BatchNorm) and module.weight is not None and not module.weight.requires_grad:
            module.register_forward_pre_hook(_stay_measured)
            module.eval()


def _stay_measured(module: nn.Module, _inputs: Any) -> None:
    """Whatever mode the network is in, this layer normalises by its running statistics and leaves them alone."""
    module.eval()
