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
    "unet_2015": Small(settings={"channels": (4, 6, 8)}, patch={2: (16, 24)}),
    "unet3d": Small(settings={"channels": (4, 6, 8)}, patch={3: (16, 8, 24)}),
    "vnet": Small(
        settings={"channels": (4, 6, 8), "convolutions": (1, 2, 1), "convolutions_up": (1, 2)},
        patch={2: (16, 24), 3: (8, 8, 16)},
    ),
    "residual_unet": Small(settings={"channels": (4, 6, 8)}, patch={2: (16, 24), 3: (16, 8, 24)}),
    "attention_unet": Small(
        settings={"channels": (4, 6, 8), "gates": 2}, patch={2: (16, 24), 3: (16, 8, 24)}
    ),
    "inception_unet": Small(settings={"channels": (4, 6, 8)}, patch={2: (16, 24), 3: (8, 8, 16)}),
    "r2unet": Small(settings={"channels": (4, 6, 8)}, patch={2: (16, 24), 3: (16, 8, 24)}),
    "segresnet": Small(
        settings={"features": 4, "blocks_down": (1, 1, 1), "blocks_up": (1, 1)},
        patch={2: (16, 24), 3: (16, 8, 16)},
    ),
    "dense_unet": Small(
        settings={"growth": 3, "blocks": (1, 2, 2), "stem": 4, "dropout": 0.0}, patch={2: (16, 24), 3: (16, 8, 8)}
    ),
    "unetplusplus": Small(settings={"channels": (4, 6, 8)}, patch={2: (16, 24), 3: (16, 8, 8)}),
    "unext": Small(settings={"channels": (4, 4, 6, 8, 10)}, patch={2: (64, 96)}),
    "dynunet": Small(settings={"features": 4, "features_limit": 8}, patch={2: (32, 48), 3: (32, 16, 8)}),
    "mednext": Small(settings={"features": 4}, patch={2: (32, 48), 3: (32, 32, 32)}),
    "segformer": Small(
        settings={"variant": "tiny", "drop_path": 0.0, "dropout": 0.0}, patch={2: (32, 64)}, odd={2: (37, 45)}
    ),
    "unetr": Small(
        settings={"features": 4, "hidden": 12, "mlp": 16, "heads": 3}, patch={2: (32, 16), 3: (32, 16, 16)}
    ),
    "swin_unetr": Small(
        settings={"features": 12, "depths": (1, 1, 1, 1), "heads": (1, 2, 2, 4), "window": 2},
        patch={2: (64, 64), 3: (64, 64, 32)},
    ),
    "sam": Small(settings={"variant": "tiny", "image_size": 64}, patch={2: (32, 48)}, odd={2: (31, 45)}),
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
