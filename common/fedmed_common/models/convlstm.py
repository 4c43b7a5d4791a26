"""A 2D U-Net for each slice whose features run through a bidirectional ConvLSTM along z (Chen et al. 2016, section 2.2).

The cell is that of Shi et al. 2015, equation 3, without its peepholes, whose weights are of one map size; its forget gate starts
open. Each direction has as many features as the level; a convolution of kernel 1 joins the two. Chen et al. run the recurrence
after the U-Nets and over several resolutions of their output; ours runs within one U-Net, at its bottom or at every level.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fedmed_common.catalogue.base import Plan
from fedmed_common.catalogue.composed import ConvLSTM
from fedmed_common.models.parts.plain_unet import plain_unet


def build(model: ConvLSTM, plan: Plan) -> nn.Module:
    """``(B, in_channels, X, Y, Z)`` to logits ``(B, outputs, X, Y, Z)``."""
    return Recurrent(model, plan)


class Cell(nn.Module):
    """One direction: ``(B, N, C, H, W)`` to the hidden states ``(B, N, C, H, W)``, in the order of the slices."""

    def __init__(self, channels: int, *, backwards: bool) -> None:
        super().__init__()
        self.backwards = backwards
        self.of_input = nn.Conv2d(channels, 4 * channels, 3, padding=1)
        self.of_hidden = nn.Conv2d(channels, 4 * channels, 3, padding=1, bias=False)
        if self.of_input.bias is not None:
            with torch.no_grad():
                self.of_input.bias[channels : 2 * channels] = 1.0

    def forward(self, slices: Tensor) -> Tensor:
        count = slices.shape[1]
        inputs = torch.unflatten(self.of_input(slices.flatten(0, 1)), 0, (-1, count))
        order = range(count)[::-1] if self.backwards else range(count)
        hidden = memory = torch.zeros_like(slices[:, 0])
        states: list[Tensor] = []
        for place in order:
            gates = inputs[:, place] + self.of_hidden(hidden)
            enter, forget, leave, news = gates.chunk(4, dim=1)
            memory = forget.sigmoid() * memory + enter.sigmoid() * news.tanh()
            hidden = leave.sigmoid() * memory.tanh()
            states.append(hidden)
        return torch.stack(states[::-1] if self.backwards else states, dim=1)


class Bidirectional(nn.Module):
    """Both directions, joined: ``(B, N, C, H, W)`` to the same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.up = Cell(channels, backwards=False)
        self.down = Cell(channels, backwards=True)
        self.join = nn.Conv2d(2 * channels, channels, 1)

    def forward(self, slices: Tensor) -> Tensor:
        both = torch.cat([self.up(slices), self.down(slices)], dim=2)
        joined: Tensor = self.join(both.flatten(0, 1))
        return torch.unflatten(joined, 0, (-1, slices.shape[1]))


class Recurrent(nn.Module):
    """``slices``: the U-Net; ``recurrent``: by level, the finest 0, what its features run through."""

    def __init__(self, model: ConvLSTM, plan: Plan) -> None:
        super().__init__()
        self.slices = plain_unet(
            2, plan.in_channels, plan.outputs, model.channels, norm=model.norm, dropout=model.dropout
        )
        levels = range(len(model.channels)) if model.recurrent == "all" else [len(model.channels) - 1]
        self.recurrent = nn.ModuleDict({str(level): Bidirectional(model.channels[level]) for level in levels})

    def forward(self, image: Tensor) -> Tensor:
        count = image.shape[4]
        features = self.slices.encode(image.movedim(4, 1).flatten(0, 1))
        for level, recurrence in self.recurrent.items():
            slices = torch.unflatten(features[int(level)], 0, (-1, count))
            features[int(level)] = recurrence(slices).flatten(0, 1)
        logits = self.slices.decode(features)
        return torch.unflatten(logits, 0, (-1, count)).movedim(1, 4)

    def checkpoint_blocks(self) -> list[nn.Module]:
        """The U-Net's stages, which are called one by one, and the recurrences."""
        return [*self.slices.checkpoint_blocks(), *self.recurrent.values()]
