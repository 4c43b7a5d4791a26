"""Weights from a file into a network: what was loaded, what was not, and why.

Names may differ by a prefix; the one that fits most arrays is found. What can be read is in ``weight_files``.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor, nn

from fedmed_common.errors import ConfigError
from fedmed_common.transfer import matches_any
from fedmed_common.weight_files import FIELD, read_weights, trained_for

_DEEPEST_PREFIX = 3

State: TypeAlias = dict[str, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """What became of a file. Names are the network's, but those of ``left_over`` are the file's.

    ``summed``: first layers whose weights of several input channels (as of colour) were summed for images of fewer. ``alone``: in
    the file without their layer's weight, so another layer's. ``of_other_classes``: the head of a run of ours whose classes
    were others.
    ``other_shape``: by name, the file's shape and the network's. ``missing``: not in the file, so as the seed makes them.
    ``prefix``: what the file puts before its names, and what the network does.
    """

    file: str
    loaded: tuple[str, ...]
    summed: tuple[str, ...]
    missing: tuple[str, ...]
    alone: tuple[str, ...]
    of_other_classes: tuple[str, ...]
    other_shape: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]
    left_over: tuple[str, ...]
    prefix: tuple[str, str]

    def sentences(self) -> list[str]:
        """What a person should know of it, the exceptions with up to three names each."""
        anew = (self.missing, self.alone, self.of_other_classes, self.other_shape)
        total = len(self.loaded) + sum(map(len, anew))
        told = [f"{len(self.loaded)} of the network's {total} arrays are from {self.file}"]
        shapes = [
            f"{name} ({_plain(theirs)}, not {_plain(ours)})"
            for name, (theirs, ours) in self.other_shape.items()
        ]
        for names, what in (
            (self.summed, "summed over the input channels"),
            (self.missing, "not in the file, initialised anew"),
            (self.alone, "in the file without their layer's weight, initialised anew"),
            (self.of_other_classes, "for other classes in the file, initialised anew"),
            (shapes, "of another shape in the file, initialised anew"),
            (self.left_over, "left over in the file"),
        ):
            if names:
                more = f" and {len(names) - 3} more" if len(names) > 3 else ""
                told.append(f"{len(names)} {what}: {', '.join(names[:3])}{more}")
        return told


def load_weights(
    network: nn.Module, path: Path, *, classes: Sequence[str] = (), head: Sequence[str] = ()
) -> Loaded:
    """Copy what fits from the file into the network, in place.

    ``classes``: what the network is for. Of a run of ours that was for others, what the patterns of ``head`` name stays as it is.

    Raises:
        ConfigError: the file cannot be read, or nothing in it fits.
    """
    found = _renamed(read_weights(path), network)
    own = {name: tensor for name, tensor in network.state_dict().items() if tensor.is_floating_point()}
    theirs, ours = _best_prefix(found, own)
    matched = {ours + name[len(theirs) :]: name for name in found if name.startswith(theirs)}
    matched = {name: matched[name] for name in own if name in matched}
    first = _input_layers(network)
    fits: State = {}
    summed, other_shape = [], {}
    for name, source in matched.items():
        tensor, wanted = found[source], own[name].shape
        if name in first and _only_channels_differ(tensor, own[name]):
            tensor = (tensor.float().sum(1, keepdim=True) / wanted[1]).expand(wanted)
            summed.append(name)
        if tensor.shape == wanted:
            fits[name] = tensor
        else:
            other_shape[name] = tuple(tensor.shape), tuple(wanted)
    alone = [name for name in fits if _weight_beside(name) in own.keys() - fits.keys()]
    others = bool(classes) and trained_for(path) not in ((), tuple(classes))
    of_other_classes = [name for name in fits if others and matches_any(name, head)]
    for name in {*alone, *of_other_classes}:
        del fits[name]
    if not fits:
        raise _nothing_fits(path, found, own)
    with torch.no_grad():
        for name, tensor in fits.items():
            own[name].copy_(tensor)
    used = set(matched.values())
    places = {own[name].data_ptr() for name in fits}
    return Loaded(
        file=path.name,
        loaded=tuple(fits),
        summed=tuple(summed),
        missing=tuple(
            name for name, tensor in own.items() if name not in matched and tensor.data_ptr() not in places
        ),
        alone=tuple(name for name in alone if name not in of_other_classes),
        of_other_classes=tuple(of_other_classes),
        other_shape=other_shape,
        left_over=tuple(name for name in found if name not in used),
        prefix=(theirs, ours),
    )


def _renamed(state: State, network: nn.Module) -> State:
    """Published names in place of which the network's package uses others now: the network lists them as ``renamed``."""
    patterns = getattr(network, "renamed", ())
    renamed: State = {}
    for source, tensor in state.items():
        name = source
        for pattern, replacement in patterns:
            name = re.sub(pattern, replacement, name)
        renamed[name] = tensor
    return renamed


def _best_prefix(found: State, own: State) -> tuple[str, str]:
    """What the file's names begin with where the network's begin otherwise, so that most arrays fit; the shortest of equals."""
    shapes = {(name, tuple(tensor.shape)) for name, tensor in own.items()}
    scores: Counter[tuple[str, str]] = Counter()
    for theirs, ours in product(_prefixes(found), _prefixes(own)):
        scores[theirs, ours] = sum(
            (ours + name[len(theirs) :], tuple(tensor.shape)) in shapes
            for name, tensor in found.items()
            if name.startswith(theirs)
        )
    return max(scores, key=lambda pair: (scores[pair], -len(pair[0]) - len(pair[1])))


def _prefixes(state: State) -> list[str]:
    """Beginnings that at least a fifth of the names share, by dots; the empty one first."""
    counts: Counter[str] = Counter()
    for name in state:
        parts = name.split(".")
        counts.update(
            ".".join(parts[:depth]) + "." for depth in range(1, min(len(parts), _DEEPEST_PREFIX + 1))
        )
    return ["", *(prefix for prefix, number in counts.items() if number * 5 >= len(state))]


def _weight_beside(name: str) -> str:
    """The name that the weight of the same layer has."""
    return f"{name[: name.rfind('.') + 1]}weight"


def _input_layers(network: nn.Module) -> set[str]:
    """Names of the weights of convolutions that take as many channels as the first one, which are those of the image."""
    layers = {
        name: module.in_channels
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv2d | nn.Conv3d) and module.groups == 1
    }
    channels = next(iter(layers.values()), 0)
    return {f"{name}.weight".lstrip(".") for name, number in layers.items() if number == channels}


def _only_channels_differ(theirs: Tensor, ours: Tensor) -> bool:
    return (
        theirs.ndim == ours.ndim
        and theirs.shape[1] != ours.shape[1]
        and (theirs.shape[0], *theirs.shape[2:]) == (ours.shape[0], *ours.shape[2:])
    )


def _nothing_fits(path: Path, found: State, own: State) -> ConfigError:
    def first(state: State) -> str:
        return next((f"{name} ({_plain(tensor.shape)})" for name, tensor in state.items()), "nothing")

    return ConfigError(
        f"nothing in {path} fits the network: the file begins with {first(found)}, the network with {first(own)}",
        field=FIELD,
        fix="name weights of this architecture, and give [model] the settings that they were trained with",
    )


def _plain(shape: Iterable[int]) -> str:
    return "x".join(map(str, shape)) or "one number"
