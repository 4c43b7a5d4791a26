"""Files of weights: safetensors (ours and others'), PyTorch state dicts of nothing but tensors, folders that transformers wrote.

Imports PyTorch only to read one, so that a wrong path is answered at once.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedmed_common.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

SAFETENSORS, TORCH = frozenset({".safetensors"}), frozenset({".pt", ".pth", ".bin", ".ckpt"})
FIELD = "transfer.weights"
_NESTED = ("state_dict", "model_state_dict", "model_state", "model", "network_weights")
_WRAPPERS = ("module.", "_orig_mod.")
_ADAPTER_A, _ADAPTER_B = ".lora_A.default.weight", ".lora_B.default.weight"
_ONE, _INDEX = "model.safetensors", "model.safetensors.index.json"


def find_weights(path: Path) -> tuple[Path, ...]:
    """The files that hold the weights that ``path`` names; none of them is read but a folder's index.

    Raises:
        ConfigError: there is none, or its ending is not known.
    """
    if path.is_dir():
        return _of_folder(path)
    if not path.is_file():
        raise ConfigError(f"no such file or folder: {path}", field=FIELD, fix="correct the path")
    if path.suffix not in SAFETENSORS | TORCH:
        known = ", ".join(sorted(SAFETENSORS | TORCH))
        raise ConfigError(
            f"{path} ends in none of {known}",
            field=FIELD,
            fix="name a file of weights, or a folder that transformers wrote",
        )
    return (path,)


def _of_folder(folder: Path) -> tuple[Path, ...]:
    if (folder / _ONE).is_file():
        return (folder / _ONE,)
    if not (folder / _INDEX).is_file():
        raise ConfigError(
            f"{folder} holds neither {_ONE} nor {_INDEX}",
            field=FIELD,
            fix="name a folder that transformers wrote, or a file",
        )
    try:
        parts = set(json.loads((folder / _INDEX).read_text())["weight_map"].values())
        files = tuple(folder / Path(part).name for part in sorted(parts))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{folder / _INDEX} cannot be read ({type(error).__name__})",
            field=FIELD,
            fix="fetch the folder again",
        ) from None
    absent = [file.name for file in files if not file.is_file()]
    if absent:
        raise ConfigError(
            f"{folder} lacks {absent[0]}, which its index names", field=FIELD, fix="fetch the folder again"
        )
    return files


def read_weights(path: Path) -> dict[str, Tensor]:
    """The floating-point tensors of a file, or of a folder's files, on the CPU.

    Raises:
        ConfigError: see ``find_weights``; or a file is damaged, or needs code to be run.
    """
    state: dict[str, Tensor] = {}
    for file in find_weights(path):
        state |= _read_safetensors(file) if file.suffix in SAFETENSORS else _read_torch(file)
    return {name: tensor for name, tensor in state.items() if tensor.is_floating_point()}


def trained_for(path: Path) -> tuple[str, ...]:
    """The classes that a run of ours trained the file's weights for, in order; none where the file does not say."""
    if path.suffix not in SAFETENSORS or not path.is_file():
        return ()
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as content:
            about = json.loads((content.metadata() or {})["experiment"])
        return tuple(str(name) for name in about["task"]["classes"])
    except (SafetensorError, OSError, ValueError, KeyError, TypeError):
        return ()


def _read_safetensors(file: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as content:
            about = content.metadata() or {}
            state = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise ConfigError(
            f"{file} is not a safetensors file that can be read: {error}",
            field=FIELD,
            fix="fetch or write it again",
        ) from None
    return _merged(state, about, file)


def _merged(state: dict[str, Tensor], about: Mapping[str, str], file: Path) -> dict[str, Tensor]:
    """Adapters that a run of ours trained, added to the layers beside which they lie (Hu et al. 2022, 'LoRA', equation 3)."""
    layers = [name.removesuffix(_ADAPTER_A) for name in state if name.endswith(_ADAPTER_A)]
    if not layers:
        return state
    try:
        lora = json.loads(about["experiment"])["transfer"]["lora"]
        scale = lora["alpha"] / lora["rank"]
    except (KeyError, ValueError, TypeError):
        raise ConfigError(
            f"{file} holds adapters without what they are scaled by",
            field=FIELD,
            fix="merge them into their layers first",
        ) from None
    merged = {
        name.replace(".base_layer.", "."): tensor for name, tensor in state.items() if ".lora_" not in name
    }
    for layer in layers:
        first, second = state[layer + _ADAPTER_A], state[layer + _ADAPTER_B]
        weight = merged[f"{layer}.weight"]
        merged[f"{layer}.weight"] = weight + scale * (second.flatten(1) @ first.flatten(1)).view_as(weight)
    return merged


def _read_torch(file: Path) -> dict[str, Tensor]:
    """Tensors of a state dict, without the prefixes of wrappers; nothing in the file is ever run."""
    import torch

    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ConfigError(
            f"{file} holds more than tensors, or is damaged, and is not opened ({type(error).__name__})",
            field=FIELD,
            fix="write its state_dict() alone, best with safetensors.torch.save_file, on a machine where you trust the file",
        ) from None
    state = dict(_tensors(content))
    for wrapper in _WRAPPERS:
        if state and all(name.startswith(wrapper) for name in state):
            state = {name.removeprefix(wrapper): tensor for name, tensor in state.items()}
    return state


def _tensors(content: Any) -> Iterator[tuple[str, Tensor]]:
    from torch import Tensor

    if not isinstance(content, Mapping):
        return
    for key in _NESTED:
        if isinstance(content.get(key), Mapping):
            yield from _tensors(content[key])
            return
    for name, value in content.items():
        if isinstance(value, Tensor):
            yield str(name), value
