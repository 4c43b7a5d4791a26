"""From this machine's memory to its GPU's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from fedmed_client.data.sampler import Batch


def pinned(cut: Callable[[Any], Batch], device: torch.device) -> Callable[[Any], Batch]:
    """``cut`` for a device: for a GPU into memory that it copies from by itself, while it computes."""
    if device.type != "cuda":
        return cut

    def cut_for_gpu(choice: Any) -> Batch:
        image, target, annotated = cut(choice)
        return image.pin_memory(), target.pin_memory(), annotated

    return cut_for_gpu


def on_device(samples: Batch, device: torch.device) -> Batch:
    """The samples on the device, without waiting for it. ``annotated`` stays on the CPU, where a loss can ask it without that."""
    image, target, annotated = samples
    return image.to(device, non_blocking=True), target.to(device, non_blocking=True), annotated


def gpus(device: torch.device) -> list[int]:
    """The GPU of a device, as torch numbers them; none for a CPU."""
    if device.type != "cuda":
        return []
    return [torch.cuda.current_device() if device.index is None else device.index]
