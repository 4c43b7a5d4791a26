"""Whether two model files hold the same weights, bit for bit. Imports no torch."""

from __future__ import annotations

from pathlib import Path

from safetensors.numpy import load_file


def difference(one: Path, other: Path) -> str:
    """The first difference of two models' weights; empty where they are equal to the last bit."""
    first, second = load_file(one), load_file(other)
    if first.keys() != second.keys():
        return f"other names: {sorted(first.keys() ^ second.keys())[:3]}"
    for name, array in first.items():
        if (array.dtype, array.shape) != (second[name].dtype, second[name].shape):
            return f"{name}: {array.dtype}{array.shape} and {second[name].dtype}{second[name].shape}"
        if array.tobytes() != second[name].tobytes():
            return f"{name}: {int((array != second[name]).sum())} of {array.size} numbers differ"
    return ""
