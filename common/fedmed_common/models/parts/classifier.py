"""The ends of classifiers: maps to logits."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fedmed_common.models.parts.convolutions import MEAN_OF_ALL


class FullyConnected(nn.Module):
    """Features pooled to a grid of fixed size, and three fully connected layers, as AlexNet and VGG end."""

    def __init__(
        self, features: nn.Module, channels: int, grid: int, hidden: int, outputs: int, dropout: float
    ) -> None:
        super().__init__()
        self.features = features
        self.avgpool = GridMean(grid)
        self.classifier = nn.Sequential(
            nn.Dropout(dropout),
            nn.Linear(channels * grid * grid, hidden),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, outputs),
        )

    def forward(self, image: Tensor) -> Tensor:
        pooled = self.avgpool(self.features(image)).flatten(1)
        logits: Tensor = self.classifier(pooled)
        return logits


class GridMean(nn.Module):
    """Means over the cells of a grid, ``(B, C, H, W)`` to ``(B, C, grid, grid)``, as adaptive average pooling has them.

    Written as two products with fixed matrices: these have a gradient that is the same from run to run on a GPU, and an ONNX form
    for every size.
    """

    def __init__(self, grid: int) -> None:
        super().__init__()
        self.grid = grid

    def forward(self, maps: Tensor) -> Tensor:
        rows, columns = (self._cells(size, maps) for size in maps.shape[2:])
        return rows @ maps @ columns.T

    def _cells(self, size: int, like: Tensor) -> Tensor:
        """``(grid, size)``: the share of each place in each cell's mean."""
        weights = torch.zeros(self.grid, size)
        for cell in range(self.grid):
            first, last = cell * size // self.grid, -(-(cell + 1) * size // self.grid)
            weights[cell, first:last] = 1 / (last - first)
        return weights.to(like)


class PooledHead(nn.Module):
    """The last of a backbone's maps, averaged over all places, and one linear layer."""

    def __init__(
        self, backbone: nn.Module, channels: int, outputs: int, dimensions: int, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.avgpool = MEAN_OF_ALL[dimensions](1)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(channels, outputs)

    def forward(self, image: Tensor) -> Tensor:
        maps: Tensor = self.backbone(image)[-1]
        logits: Tensor = self.fc(self.dropout(self.avgpool(maps).flatten(1)))
        return logits
