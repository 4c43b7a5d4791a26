"""The way down, the way up and what is handed across: what the classic U-Nets have in common."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fedmed_common.models.parts.convolutions import MAX_POOL

_TRANSPOSED: dict[int, type[nn.ConvTranspose2d | nn.ConvTranspose3d]] = {
    2: nn.ConvTranspose2d,
    3: nn.ConvTranspose3d,
}
_LINEAR = {2: "bilinear", 3: "trilinear"}


def up_convolution(dimensions: int, channels_in: int, channels_out: int, *, bias: bool = True) -> nn.Module:
    """Twice as fine: a transposed convolution of kernel 2 and stride 2."""
    return _TRANSPOSED[dimensions](channels_in, channels_out, 2, stride=2, bias=bias)


def upsampling(dimensions: int) -> nn.Module:
    """Twice as fine by linear interpolation."""
    return nn.Upsample(scale_factor=2, mode=_LINEAR[dimensions], align_corners=False)


def halving(dimensions: int) -> nn.Module:
    """Max pooling over 2 voxels per axis."""
    return MAX_POOL[dimensions](2)


class UShape(nn.Module):
    """``left`` stages, finest first; ``right`` stages, coarsest first, each on its ``up``-sampled input beside the skip.

    ``pool`` stands between the left stages; the skip comes first in the channels of what a right stage gets. ``encode`` and
    ``decode`` are its halves, for a network that puts something between them.
    """

    def __init__(
        self,
        left: Sequence[nn.Module],
        right: Sequence[nn.Module],
        *,
        pool: nn.Module,
        up: Sequence[nn.Module],
        head: nn.Module,
    ) -> None:
        super().__init__()
        self.left = nn.ModuleList(left)
        self.right = nn.ModuleList(right)
        self.pool = pool
        self.up = nn.ModuleList(up)
        self.head = head

    def encode(self, image: Tensor) -> list[Tensor]:
        """What each left stage gives, the finest first."""
        features: list[Tensor] = []
        for level, stage in enumerate(self.left):
            features.append(stage(self.pool(features[-1]) if level else image))
        return features

    def decode(self, features: Sequence[Tensor]) -> Tensor:
        """Logits of what each left stage gave."""
        *skips, maps = features
        for up, stage in zip(self.up, self.right, strict=True):
            maps = stage(torch.cat([skips.pop(), up(maps)], dim=1))
        logits: Tensor = self.head(maps)
        return logits

    def forward(self, image: Tensor) -> Tensor:
        return self.decode(self.encode(image))

    def checkpoint_blocks(self) -> list[nn.Module]:
        """The stages: what is worth computing twice to save its memory."""
        return [*self.left, *self.right]


def he_normal(network: nn.Module) -> None:
    """Weights of every convolution drawn with deviation sqrt(2 / fan in) (He et al. 2015, section 2.2), biases zero."""
    kinds = (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)
    for layer in network.modules():
        if isinstance(layer, kinds):
            transposed = isinstance(layer, nn.ConvTranspose2d | nn.ConvTranspose3d)
            inputs = layer.weight.shape[0] if transposed else layer.weight[0].numel()
            nn.init.normal_(layer.weight, std=(2 / inputs) ** 0.5)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
