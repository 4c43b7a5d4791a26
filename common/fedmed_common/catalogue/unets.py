"""The U-Nets."""

from __future__ import annotations

from math import prod
from typing import Annotated, ClassVar, Literal, TypeAlias

from pydantic import Field

from fedmed_common.catalogue.base import Architecture, Plan

Channels = tuple[Annotated[int, Field(ge=1, le=4096)], ...]


class UNet(Architecture):
    """One level for each number in ``channels``, each half as fine as the one above."""

    module: ClassVar[str] = "fedmed_common.models.unet"
    title: ClassVar[str] = "U-Net, with residual units where wanted"
    source: ClassVar[str] = "Ronneberger et al. 2015, 'U-Net', MICCAI; Kerfoot et al. 2019, STACOM"
    dimensions: ClassVar[tuple[int, ...]] = (2, 3)

    name: Literal["unet"] = "unet"
    channels: Channels = Field(
        (16, 32, 64, 128), min_length=2, max_length=8, description="features per level"
    )
    residual_units: Annotated[int, Field(ge=0, le=8)] = Field(
        1, description="per level; 0: plain convolutions"
    )
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0

    def multiple(self) -> int:
        """A factor of two for each level below the first."""
        return int(2 ** (len(self.channels) - 1))

    def check(self, plan: Plan) -> None:
        """Also refuses a deepest level of one voxel, of which a norm would leave nothing."""
        super().check(plan)
        if prod(size // self.multiple() for size in plan.patch) == 1:
            raise ValueError(
                f"model.channels: {len(self.channels)} levels shrink a patch of {list(plan.patch)} to one voxel; its norm over "
                "that voxel alone leaves nothing; use fewer levels or a larger data.patch"
            )


UNets: TypeAlias = UNet
