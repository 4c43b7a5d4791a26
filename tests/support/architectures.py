"""Each architecture as small as it can be and still be itself: what the shared tester builds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from fedmed_common.catalogue import ARCHITECTURES
from fedmed_common.config import Experiment


@dataclass(frozen=True, kw_only=True)
class Small:
    """``patch`` by dimensions; ``odd``: a patch that is no multiple of anything, for those that take any size."""

    settings: dict[str, Any] = field(default_factory=dict)
    patch: dict[int, tuple[int, ...]]
    odd: dict[int, tuple[int, ...]] = field(default_factory=dict)
    task: str = "segmentation"


SMALL: dict[str, Small] = {
    "unet": Small(settings={"channels": (4, 6, 8)}, patch={2: (16, 24), 3: (16, 8, 24)}),
    "segresnet": Small(
        settings={"features": 4, "blocks_down": (1, 1, 1), "blocks_up": (1, 1)},
        patch={2: (16, 24), 3: (16, 8, 16)},
    ),
}

EACH = [
    (name, dimensions)
    for name, kind in ARCHITECTURES.items()
    for dimensions in kind.dimensions
    if name in SMALL
]


def experiment(
    name: str, dimensions: int, *, seed: int = 5, channels: int = 1, **model: object
) -> Experiment:
    """An experiment with the small network of this name."""
    small = SMALL[name]
    return Experiment.model_validate(
        {
            "name": "models",
            "seed": seed,
            "rounds": 1,
            "task": {"name": small.task, "classes": ["liver", "spleen"], "dimensions": dimensions},
            "data": {"channels": channels, "patch": small.patch[dimensions]},
            "model": {"name": name, **small.settings, **model},
        }
    )
