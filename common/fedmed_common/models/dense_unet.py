"""FC-DenseNet, 'Tiramisu' (Jégou et al. 2017, table 2): a U-Net of dense blocks, in 2D and 3D.

As in the paper, a block on the way up hands on only the features that it made itself, so that their number does not explode
(section 3.2). The paper's norm is batch norm; ours is what ``model.norm`` says. Weights are drawn as its code does, He uniform.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fedmed_common.catalogue.base import Norm, Plan
from fedmed_common.catalogue.unets_modern import DenseUNet
from fedmed_common.models.parts.convolutions import CONVOLUTION, MAX_POOL, convolution
from fedmed_common.models.parts.norms import make_norm

TRANSPOSED: dict[int, type[nn.ConvTranspose2d | nn.ConvTranspose3d]] = {
    2: nn.ConvTranspose2d,
    3: nn.ConvTranspose3d,
}


def build(model: DenseUNet, plan: Plan) -> nn.Module:
    """``(B, in_channels, *patch)`` to logits ``(B, outputs, *patch)``."""
    network = Tiramisu(model, plan)
    for layer in network.modules():
        if isinstance(layer, CONVOLUTION[plan.dimensions] | TRANSPOSED[plan.dimensions]):
            nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return network


def _layer(
    dimensions: int, channels_in: int, channels_out: int, kernel: int, norm: Norm, dropout: float
) -> nn.Sequential:
    """Norm, ReLU, convolution, dropout: table 1 of the paper."""
    return nn.Sequential(
        make_norm(norm, channels_in, dimensions),
        nn.ReLU(),
        convolution(dimensions, channels_in, channels_out, kernel, bias=True),
        nn.Dropout(dropout),
    )


class DenseBlock(nn.Module):
    """Each layer sees the input and what all layers before it made; the result is what the layers made: ``layers * growth``."""

    def __init__(self, model: DenseUNet, dimensions: int, channels_in: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            _layer(dimensions, channels_in + place * model.growth, model.growth, 3, model.norm, model.dropout)
            for place in range(layers)
        )

    def forward(self, maps: Tensor) -> Tensor:
        made: list[Tensor] = []
        for layer in self.layers:
            made.append(layer(torch.cat([maps, *made], dim=1)))
        return torch.cat(made, dim=1)


class Tiramisu(nn.Module):
    """Dense blocks down, one at the bottom, dense blocks up."""

    def __init__(self, model: DenseUNet, plan: Plan) -> None:
        super().__init__()
        dimensions = plan.dimensions
        *levels, bottom = model.blocks
        self.stem = convolution(dimensions, plan.in_channels, model.stem, 3, bias=True)
        self.down, self.shrink = nn.ModuleList(), nn.ModuleList()
        channels, skips = model.stem, []
        for layers in levels:
            self.down.append(DenseBlock(model, dimensions, channels, layers))
            channels += layers * model.growth
            skips.append(channels)
            self.shrink.append(
                nn.Sequential(
                    _layer(dimensions, channels, channels, 1, model.norm, model.dropout),
                    MAX_POOL[dimensions](2),
                )
            )
        self.bottom = DenseBlock(model, dimensions, channels, bottom)
        self.grow, self.up = nn.ModuleList(), nn.ModuleList()
        made = bottom * model.growth
        for layers, skip in zip(reversed(levels), reversed(skips), strict=True):
            self.grow.append(TRANSPOSED[dimensions](made, made, 3, stride=2, padding=1, output_padding=1))
            channels = skip + made
            self.up.append(DenseBlock(model, dimensions, channels, layers))
            made = layers * model.growth
        self.head = convolution(dimensions, channels + made, plan.outputs, 1, bias=True)

    def forward(self, image: Tensor) -> Tensor:
        maps, skips = self.stem(image), []
        for block, shrink in zip(self.down, self.shrink, strict=True):
            skips.append(torch.cat([maps, block(maps)], dim=1))
            maps = shrink(skips[-1])
        made = self.bottom(maps)
        for grow, block in zip(self.grow, self.up, strict=True):
            maps = torch.cat([skips.pop(), grow(made)], dim=1)
            made = block(maps)
        logits: Tensor = self.head(torch.cat([maps, made], dim=1))
        return logits
