"""Stochastic depth (Huang et al. 2016, 'Deep networks with stochastic depth', ECCV)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class DropPath(nn.Module):
    """In training, sets a sample's whole branch to zero with probability ``share``, and scales the others up."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, branch: Tensor) -> Tensor:
        if not (self.training and self.share):
            return branch
        shape = (len(branch),) + (1,) * (branch.ndim - 1)
        kept = torch.rand(shape, device=branch.device) >= self.share
        return branch * kept.to(branch.dtype) / (1 - self.share)
