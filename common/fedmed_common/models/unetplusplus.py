"""U-Net++ (Zhou et al. 2020, section III): a U-Net whose skip pathways are nested and dense, in 2D and 3D.

Node (i, j) lies at level i, the finest 0, and at place j along its pathway; it sees all nodes before it on the pathway and the
upsampled node below. A network pruned to depth d has the nodes with i + j <= d, and its output is that of node (0, d), branch
L^d (section III-C). Unlike the authors' code: a norm after each convolution, and the full network's output is always the
deepest branch, their fast mode, not the mean over branches.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fedmed_common.catalogue.base import Plan
from fedmed_common.catalogue.unets_modern import UNetPlusPlus
from fedmed_common.models.parts.convolutions import convolution
from fedmed_common.models.parts.plain_unet import double
from fedmed_common.models.parts.ushape import halving, up_convolution


def build(model: UNetPlusPlus, plan: Plan) -> nn.Module:
    """``(B, in_channels, *patch)`` to logits ``(B, outputs, *patch)``; while training, with deep supervision, every branch's."""
    return Nested(model, plan)


def pruned(network: Nested, depth: int) -> Nested:
    """What is left of a network when only branch L^depth is wanted; its output is that branch's own, with fewer nodes.

    Raises:
        ValueError: the network has no head for this branch: it was built without deep supervision, or is not so deep.
    """
    if str(depth) not in network.heads:
        raise ValueError(
            f"no branch {depth}: this network has {', '.join(network.heads)}; train it with model.deep_supervision = true"
        )
    smaller = Nested(
        network.model.model_copy(update={"prune": depth, "deep_supervision": False}), network.plan
    )
    kept = network.state_dict()
    smaller.load_state_dict({name: kept[name] for name in smaller.state_dict()})
    return smaller.train(network.training)


def _node(level: int, place: int) -> str:
    return f"{level}_{place}"


class Nested(nn.Module):
    """All nodes up to the depth, and a head for the deepest branch, or one for each with deep supervision."""

    def __init__(self, model: UNetPlusPlus, plan: Plan) -> None:
        super().__init__()
        self.model, self.plan, self.depth = model, plan, model.depth()
        dimensions, channels = plan.dimensions, (plan.in_channels, *model.channels)
        self.pool = halving(dimensions)
        self.nodes, self.ups, self.heads = nn.ModuleDict(), nn.ModuleDict(), nn.ModuleDict()
        for level in range(self.depth + 1):
            before, here = channels[level], channels[level + 1]
            self.nodes[_node(level, 0)] = double(dimensions, before, here, model.norm)
        for place in range(1, self.depth + 1):
            for level in range(self.depth + 1 - place):
                here, below = model.channels[level], model.channels[level + 1]
                self.ups[_node(level, place)] = up_convolution(dimensions, below, here)
                self.nodes[_node(level, place)] = double(dimensions, (place + 1) * here, here, model.norm)
        branches = range(1 if model.deep_supervision else self.depth, self.depth + 1)
        for branch in branches:
            self.heads[str(branch)] = convolution(dimensions, model.channels[0], plan.outputs, 1, bias=True)
        self.output_weights = tuple(1.0 / len(branches) for _ in branches)

    def forward(self, image: Tensor) -> Tensor | tuple[Tensor, ...]:
        """The deepest branch; while training, if there are several, a tuple of all, the deepest first."""
        branches = self.branches(image)
        return branches if self.training and len(branches) > 1 else branches[0]

    def branches(self, image: Tensor) -> tuple[Tensor, ...]:
        """Logits of each branch that has a head, the deepest first."""
        rows = [[self.nodes[_node(0, 0)](image)]]
        for level in range(1, self.depth + 1):
            rows.append([self.nodes[_node(level, 0)](self.pool(rows[-1][0]))])
        for place in range(1, self.depth + 1):
            for level in range(self.depth + 1 - place):
                up = self.ups[_node(level, place)](rows[level + 1][-1])
                rows[level].append(self.nodes[_node(level, place)](torch.cat([*rows[level], up], dim=1)))
        wanted = reversed(list(self.heads.items()))
        return tuple(head(rows[0][int(branch)]) for branch, head in wanted)
