"""Gradient inversion: an image from what a site sends of one step on it.

Source: Geiping et al. 2020, 'Inverting gradients: how easy is it to break privacy in federated learning?', NeurIPS: the image
whose gradient points the same way, and that is smooth. The attacker knows the network, the label and that there is one image.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fedmed_client.patient_gradients import Samples
from fedmed_client.workbench import Bench

_STEPS, _RATE, _SMOOTH = 400, 0.1, 3e-2


def gradient(bench: Bench, sample: Samples, *, differentiable: bool = False) -> list[Tensor]:
    """Of the task's loss on the samples, for each parameter that is trained."""
    image, target, annotated = sample
    parameters = bench.parameters
    loss = bench.task.objective(bench.model, image, target, annotated)
    found = torch.autograd.grad(loss, parameters, create_graph=differentiable, allow_unused=True)
    return [
        torch.zeros_like(parameter) if part is None else part
        for part, parameter in zip(found, parameters, strict=True)
    ]


def invert(
    bench: Bench, sent: Sequence[Tensor], sample: Samples, steps: int = _STEPS, seed: int = 0
) -> Tensor:
    """The image that explains ``sent``, ``(1, C, *patch)``. Of ``sample`` the attacker knows the shape and the label."""
    image, target, annotated = sample
    guess = torch.randn(image.shape, generator=torch.Generator().manual_seed(seed)).requires_grad_()
    optimizer = torch.optim.Adam([guess], lr=_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    seen = [part.detach().to(image.dtype) for part in sent]
    length = torch.sqrt(sum((part.square().sum() for part in seen), torch.zeros(())))
    for _ in range(steps):
        found = gradient(bench, (guess, target, annotated), differentiable=True)
        product = sum(((a * b).sum() for a, b in zip(found, seen, strict=True)), torch.zeros(()))
        own = torch.sqrt(sum((part.square().sum() for part in found), torch.zeros(())))
        loss = 1 - product / (own * length).clamp_min(1e-12) + _SMOOTH * _roughness(guess)
        optimizer.zero_grad()
        (guess.grad,) = torch.autograd.grad(loss, [guess])
        optimizer.step()
        schedule.step()
    return guess.detach()


def likeness(image: Tensor, guess: Tensor) -> float:
    """Pearson's correlation of their pixels; the sign does not matter to who looks at it."""
    return abs(float(np.corrcoef(image.flatten().numpy(), guess.flatten().numpy())[0, 1]))


def _roughness(image: Tensor) -> Tensor:
    """Mean absolute difference of neighbours."""
    return torch.stack([image.diff(dim=axis).abs().mean() for axis in range(2, image.dim())]).sum()
