"""The processes that share one site's training: here the one that is alone, which is almost always all there is."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

from torch import Tensor, nn

from fedmed_common import params
from fedmed_common.params import Parameters


class Team:
    """What training asks of the others that train the same network on other parts of the same batches.

    ``rank``: which one this process is, from 0; ``size``: how many there are.
    """

    rank: int = 0
    size: int = 1

    def load(self, parameters: Parameters, network: nn.Module) -> None:
        """Copy parameters into the network, in place. Raises WireError where they are not those of it."""
        params.to_model(parameters, network)

    def prepared(self, network: nn.Module) -> nn.Module:
        """The network whose gradients are the mean over all processes; its parameters are those of ``network``."""
        return network

    def collecting(self, network: nn.Module, *, last: bool) -> AbstractContextManager[None]:
        """Around the passes of one part of a batch; gradients need to be exchanged after the last part only."""
        return nullcontext()

    def mean(self, value: Tensor) -> Tensor:
        """The mean of a number over all processes."""
        return value

    def whole(self, network: nn.Module) -> nn.Module:
        """A module with the trained parameters, entire on this process, under the names that they had at first."""
        return network


ALONE = Team()
