"""U-Nets since 2018."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, TypeAlias

from pydantic import Field

from fedmed_common.catalogue.base import Architecture


class SegResNet(Architecture):
    """An asymmetric encoder and decoder of residual blocks; the smallest level is the bottleneck."""

    module: ClassVar[str] = "fedmed_common.models.segresnet"
    title: ClassVar[str] = "SegResNet, without the variational branch"
    source: ClassVar[str] = (
        "Myronenko 2018, '3D MRI brain tumor segmentation using autoencoder regularization', BrainLes"
    )
    dimensions: ClassVar[tuple[int, ...]] = (2, 3)
    head: ClassVar[tuple[str, ...]] = ("conv_final.*",)

    name: Literal["segresnet"] = "segresnet"
    features: Annotated[int, Field(ge=1, le=1024)] = Field(
        8, description="of the first level; each further one doubles them"
    )
    blocks_down: tuple[Annotated[int, Field(ge=1, le=16)], ...] = Field(
        (1, 2, 2, 4), min_length=2, max_length=8
    )
    blocks_up: tuple[Annotated[int, Field(ge=1, le=16)], ...] = Field((1, 1, 1), min_length=1, max_length=7)
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0

    def multiple(self) -> int:
        """A factor of two for each level below the first."""
        return int(2 ** (len(self.blocks_down) - 1))


ModernUNets: TypeAlias = SegResNet
