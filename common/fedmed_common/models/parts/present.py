"""Which modalities of a sample are there."""

from __future__ import annotations

from torch import Tensor


def present(image: Tensor) -> Tensor:
    """``(B, C)``, 1 or 0: a channel of ``(B, C, *patch)`` that is zero everywhere is a modality that is missing."""
    return (image != 0).flatten(2).any(2).to(image.dtype)
