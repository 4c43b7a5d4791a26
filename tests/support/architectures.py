"""Each architecture as small as it can be and still be itself: what the shared tester builds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from fedmed_common.catalogue import ARCHITECTURES
from fedmed_common.config import Experiment


@dataclass(frozen=True, kw_only=True)
class Small:
    """``patch`` by dimensions; ``odd``: a patch that is no multiple of anything, for those that take any size."""

    settings: dict[str, Any] = field(default_factory=dict)
    patch: dict[int, tuple[int, ...]]
    odd: dict[int, tuple[int, ...]] = field(default_factory=dict)
    task: str = "segmentation"


def _classifier(
    settings: dict[str, Any],
    patch: dict[int, tuple[int, ...]],
    odd: dict[int, tuple[int, ...]] | None = None,
) -> Small:
    return Small(settings=settings, patch=patch, odd=odd or {}, task="classification")


SMALL: dict[str, Small] = {
    "fcn": Small(settings={"width": 0.02, "dropout": 0.0}, patch={2: (32, 64)}),
    "segnet": Small(settings={"width": 0.07}, patch={2: (32, 64), 3: (32, 32, 64)}),
    "pspnet": Small(
        settings={"width": 0.02, "dropout": 0.0},
        patch={2: (32, 40), 3: (16, 16, 24)},
        odd={2: (37, 45), 3: (17, 19, 21)},
    ),
    "hrnet": Small(
        settings={"width": 0.05, "modules": (1, 1, 1), "blocks": 1},
        patch={2: (40, 64), 3: (36, 36, 40)},
        odd={2: (37, 45), 3: (33, 35, 34)},
    ),
    "deepmedic": Small(
        settings={"features": (4, 6), "joined": (8, 6), "dropout": 0.0},
        patch={2: (16, 20), 3: (8, 12, 10)},
        odd={2: (13, 17), 3: (7, 9, 11)},
    ),
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
        settings={"growth": 3, "blocks": (1, 2, 2), "stem": 4, "dropout": 0.0},
        patch={2: (16, 24), 3: (16, 8, 8)},
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
        patch={2: (64, 64), 3: (64, 32, 32)},
    ),
    "sam": Small(settings={"variant": "tiny", "image_size": 64}, patch={2: (32, 48)}, odd={2: (31, 45)}),
    "deeplab_v1": Small(
        settings={"width": 0.0625, "dropout": 0.0, "rate": 2},
        patch={2: (32, 24), 3: (16, 8, 24)},
        odd={2: (29, 22), 3: (17, 9, 10)},
    ),
    "deeplab_v2": Small(
        settings={"width": 0.0625, "backbone": "resnet18", "rates": (1, 2)},
        patch={2: (32, 24), 3: (16, 8, 24)},
        odd={2: (29, 22), 3: (17, 9, 10)},
    ),
    "deeplab_v3": Small(
        settings={
            "width": 0.0625,
            "backbone": "resnet18",
            "output_stride": 8,
            "rates": (1, 2),
            "dropout": 0.0,
        },
        patch={2: (32, 24), 3: (24, 16, 16)},
        odd={2: (29, 22), 3: (17, 9, 10)},
    ),
    "deeplab_v3plus": Small(
        settings={
            "width": 0.0625,
            "backbone": "resnet18",
            "output_stride": 8,
            "rates": (1, 2),
            "dropout": 0.0,
        },
        patch={2: (32, 24), 3: (24, 16, 16)},
        odd={2: (29, 22), 3: (17, 9, 10)},
    ),
    "alexnet": _classifier({"width": 0.05, "dropout": 0.0}, {2: (63, 80)}, {2: (71, 83)}),
    "vgg": _classifier({"depth": 11, "width": 0.05, "dropout": 0.0}, {2: (64, 64)}, {2: (71, 83)}),
    "googlenet": _classifier({"width": 0.05, "dropout": 0.0}, {2: (64, 48)}, {2: (71, 53)}),
    "inception_v3": _classifier({"width": 0.05, "dropout": 0.0}, {2: (107, 107)}, {2: (109, 113)}),
    "xception": _classifier(
        {"width": 0.02, "dropout": 0.0}, {2: (64, 48), 3: (33, 33, 33)}, {2: (71, 53), 3: (35, 33, 37)}
    ),
    "resnet": _classifier({"width": 0.05}, {2: (64, 48), 3: (33, 33, 33)}, {2: (71, 53), 3: (35, 33, 37)}),
    "densenet": _classifier({"width": 0.1}, {2: (64, 64), 3: (64, 64, 64)}, {2: (71, 69), 3: (65, 67, 64)}),
    "efficientnet": _classifier(
        {"width": 0.1, "dropout": 0.0}, {2: (64, 48), 3: (33, 33, 33)}, {2: (71, 53), 3: (35, 33, 37)}
    ),
    "vit": _classifier({"width": 0.01, "layers": 2}, {2: (32, 48), 3: (32, 16, 16)}),
    "deit": _classifier({"width": 0.01, "layers": 2, "distilled": True}, {2: (32, 48), 3: (32, 16, 16)}),
    "cait": _classifier({"width": 0.3, "layers": 2}, {2: (32, 48), 3: (32, 16, 16)}),
    "transmed": _classifier(
        {"width": 0.05, "layers": 2}, {2: (64, 48), 3: (48, 40, 5)}, {2: (71, 53), 3: (49, 37, 7)}
    ),
    "adversarial": Small(
        settings={"channels": (4, 6, 8), "discriminator": (4, 6)}, patch={2: (16, 24), 3: (16, 8, 8)}
    ),
    "cascade": Small(
        settings={"channels": (4, 6, 8), "coarse_channels": (4, 6)}, patch={2: (16, 24), 3: (16, 8, 8)}
    ),
    "ensemble": Small(settings={"channels": (4, 6), "members": 2}, patch={2: (16, 24), 3: (16, 8, 8)}),
    "hemis": Small(settings={"channels": (4, 6)}, patch={2: (16, 24), 3: (16, 8, 8)}),
    "late_fusion": Small(settings={"channels": (4, 6)}, patch={2: (16, 24), 3: (16, 8, 8)}),
    "planes": Small(settings={"channels": (4, 6, 8)}, patch={3: (16, 8, 24)}),
    "convlstm": Small(settings={"channels": (4, 6, 8)}, patch={3: (16, 8, 5)}),
}

EACH = [
    (name, dimensions)
    for name, kind in ARCHITECTURES.items()
    for dimensions in kind.dimensions
    if name in SMALL
]

SOME = [("unet", 3), ("fcn", 2), ("deeplab_v3plus", 2), ("segformer", 2), ("adversarial", 3), ("resnet", 2)]
EACH_BUT_MOST_SLOW = [pair if pair in SOME else pytest.param(*pair, marks=pytest.mark.slow) for pair in EACH]
"""For what takes seconds: some at each 'make test', all of them at 'make test-models'."""


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
