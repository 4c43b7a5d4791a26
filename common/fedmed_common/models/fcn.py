"""FCN-32s, -16s and -8s on VGG-16 (Long et al. 2015, section 4 and figure 3), in 2D.

Coarse scores are made twice as fine by learned transposed convolutions that start as bilinear interpolation, and those of the
fourth and third pool are added; the last step to full resolution stays bilinear, as in the paper, unless
``learned_upsampling``. Ours has norms within VGG-16 and pads the 7x7 layer, where the paper has none and pads the image by 100
pixels and crops. Scores start small and random, where the paper's start at zero: it found no difference (section 4.3).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import conv_transpose2d

from fedmed_common.catalogue.base import Plan
from fedmed_common.catalogue.fully_convolutional import FCN
from fedmed_common.models.parts.convolutions import convolution, scaled
from fedmed_common.models.parts.ushape import halving, he_normal
from fedmed_common.models.parts.vgg import STAGES, vgg16

WIDE = 4096
"""Features of what were VGG-16's fully connected layers."""

SCORED = {"32s": 1, "16s": 2, "8s": 3}
"""How many of the last pools are scored."""


def bilinear_kernel(factor: int) -> Tensor:
    """``(2 * factor, 2 * factor)``: linear interpolation as a transposed convolution of stride ``factor``, an even number."""
    places = torch.arange(2 * factor, dtype=torch.float32)
    line = 1 - (places - (factor - 0.5)).abs() / factor
    return torch.outer(line, line)


def learned_upsampling(channels: int, factor: int) -> nn.ConvTranspose2d:
    """``factor`` times as fine, each channel by itself at first."""
    layer = nn.ConvTranspose2d(channels, channels, 2 * factor, stride=factor, padding=factor // 2, bias=False)
    with torch.no_grad():
        layer.weight.zero_()
        layer.weight[range(channels), range(channels)] = bilinear_kernel(factor)
    return layer


class FixedUpsampling(nn.Module):
    """``factor`` times as fine by the same kernel, which is never learned and not part of the weights."""

    def __init__(self, channels: int, factor: int) -> None:
        super().__init__()
        self.channels, self.factor = channels, factor
        kernel = bilinear_kernel(factor).expand(channels, 1, -1, -1).clone()
        self.register_buffer("kernel", kernel, persistent=False)

    def forward(self, maps: Tensor) -> Tensor:
        kernel = self.get_buffer("kernel").to(maps.dtype)
        return conv_transpose2d(
            maps, kernel, stride=self.factor, padding=self.factor // 2, groups=self.channels
        )


class Network(nn.Module):
    """``scores`` and ``up`` from the coarsest on; ``last`` to full resolution."""

    def __init__(self, model: FCN, plan: Plan) -> None:
        super().__init__()
        scored = SCORED[model.variant]
        deepest, wide = scaled(STAGES[-1][-1], model.width), scaled(WIDE, model.width)
        self.stages = nn.ModuleList(vgg16(2, plan.in_channels, model.norm, model.width))
        self.pool = halving(2)
        self.wide = nn.Sequential(
            convolution(2, deepest, wide, 7, bias=True),
            nn.ReLU(),
            nn.Dropout(model.dropout),
            convolution(2, wide, wide, 1, bias=True),
            nn.ReLU(),
            nn.Dropout(model.dropout),
        )
        he_normal(self)
        pooled = [scaled(features[-1], model.width) for features in STAGES[::-1]]
        self.scores = nn.ModuleList(
            convolution(2, features, plan.outputs, 1, bias=True) for features in (wide, *pooled[1:scored])
        )
        for score in self.scores:
            nn.init.normal_(score.get_parameter("weight"), std=0.01)
            nn.init.zeros_(score.get_parameter("bias"))
        self.up = nn.ModuleList(learned_upsampling(plan.outputs, 2) for _ in range(scored - 1))
        factor = 2 ** (6 - scored)
        self.last: nn.Module = FixedUpsampling(plan.outputs, factor)
        if model.learned_upsampling:
            self.last = learned_upsampling(plan.outputs, factor)

    def forward(self, image: Tensor) -> Tensor:
        maps = image
        pooled: list[Tensor] = []
        for stage in self.stages:
            maps = self.pool(stage(maps))
            pooled.append(maps)
        scores: Tensor = self.scores[0](self.wide(pooled.pop()))
        for up, score in zip(self.up, self.scores[1:], strict=True):
            scores = up(scores) + score(pooled.pop())
        logits: Tensor = self.last(scores)
        return logits

    def checkpoint_blocks(self) -> list[nn.Module]:
        """The stages: what is worth computing twice to save its memory."""
        return list(self.stages)


def build(model: FCN, plan: Plan) -> nn.Module:
    """``(B, in_channels, *patch)`` to logits ``(B, outputs, *patch)``."""
    return Network(model, plan)
