"""The U-Nets: the encoder and decoder of 2015 and what the next years built of it."""

from __future__ import annotations

from math import prod
from typing import Annotated, Any, ClassVar, Literal, Self, TypeAlias

from pydantic import Field, model_validator

from fedmed_common.catalogue.base import Architecture, Plan

Channels = tuple[Annotated[int, Field(ge=1, le=4096)], ...]
Dropout = Annotated[float, Field(ge=0.0, lt=1.0)]
Convolutions = tuple[Annotated[int, Field(ge=1, le=8)], ...]


def _channels(*defaults: int) -> Any:
    """A field: one level for each number, each half as fine as the one above."""
    return Field(defaults, min_length=2, max_length=8, description="features per level, the finest first")


def _factor(channels: Channels) -> int:
    """Two for each level below the first."""
    return int(2 ** (len(channels) - 1))


def _refuse_one_voxel(channels: Channels, plan: Plan) -> None:
    """A norm over the one voxel of a deepest level leaves nothing of it."""
    if prod(size // _factor(channels) for size in plan.patch) == 1:
        raise ValueError(
            f"model.channels: {len(channels)} levels shrink a patch of {list(plan.patch)} to one voxel; its norm over "
            "that voxel alone leaves nothing; use fewer levels or a larger data.patch"
        )


class UNet(Architecture):
    """One level for each number in ``channels``, each half as fine as the one above."""

    module: ClassVar[str] = "fedmed_common.models.unet"
    title: ClassVar[str] = "U-Net, with residual units where wanted"
    source: ClassVar[str] = "Ronneberger et al. 2015, 'U-Net', MICCAI; Kerfoot et al. 2019, STACOM"
    dimensions: ClassVar[tuple[int, ...]] = (2, 3)
    head: ClassVar[tuple[str, ...]] = ("model.2.*",)

    name: Literal["unet"] = "unet"
    channels: Channels = Field(
        (16, 32, 64, 128), min_length=2, max_length=8, description="features per level"
    )
    residual_units: Annotated[int, Field(ge=0, le=8)] = Field(
        1, description="per level; 0: plain convolutions"
    )
    dropout: Dropout = 0.0

    def multiple(self) -> int:
        """A factor of two for each level below the first."""
        return _factor(self.channels)

    def check(self, plan: Plan) -> None:
        """Also refuses a deepest level of one voxel."""
        super().check(plan)
        _refuse_one_voxel(self.channels, plan)


class UNet2015(Architecture):
    """Two 3x3 convolutions per level; the published sizes are ``channels = [64, 128, 256, 512, 1024]``."""

    module: ClassVar[str] = "fedmed_common.models.unet_2015"
    title: ClassVar[str] = "U-Net of 2015, padded so that the output is as large as the input"
    source: ClassVar[str] = (
        "Ronneberger et al. 2015, 'U-Net: convolutional networks for biomedical image segmentation', MICCAI"
    )
    dimensions: ClassVar[tuple[int, ...]] = (2,)
    head: ClassVar[tuple[str, ...]] = ("head.*",)

    name: Literal["unet_2015"] = "unet_2015"
    channels: Channels = _channels(32, 64, 128, 256, 512)
    dropout: Dropout = Field(0.0, description="at the end of the way down")

    def multiple(self) -> int:
        """A factor of two for each level below the first."""
        return _factor(self.channels)

    def check(self, plan: Plan) -> None:
        """Also refuses a deepest level of one voxel."""
        super().check(plan)
        _refuse_one_voxel(self.channels, plan)


class UNet3D(Architecture):
    """Features double before each pooling, not after it; published: ``channels = [64, 128, 256, 512]``."""

    module: ClassVar[str] = "fedmed_common.models.unet3d"
    title: ClassVar[str] = "3D U-Net, which avoids bottlenecks"
    source: ClassVar[str] = (
        "Çiçek et al. 2016, '3D U-Net: learning dense volumetric segmentation from sparse annotation', MICCAI"
    )
    dimensions: ClassVar[tuple[int, ...]] = (3,)
    head: ClassVar[tuple[str, ...]] = ("head.*",)

    name: Literal["unet3d"] = "unet3d"
    channels: Channels = _channels(32, 64, 128, 256)

    def multiple(self) -> int:
        """A factor of two for each level below the first."""
        return _factor(self.channels)

    def check(self, plan: Plan) -> None:
        """Also refuses a deepest level of one voxel."""
        super().check(plan)
        _refuse_one_voxel(self.channels, plan)


class VNet(Architecture):
    """Residual stages of 5x5x5 convolutions; the published sizes are the defaults."""

    module: ClassVar[str] = "fedmed_common.models.vnet"
    title: ClassVar[str] = "V-Net, residual stages of 5x5x5 convolutions"
    source: ClassVar[str] = (
        "Milletari et al. 2016, 'V-Net: fully convolutional neural networks for volumetric medical image segmentation', 3DV"
    )
    dimensions: ClassVar[tuple[int, ...]] = (2, 3)
    head: ClassVar[tuple[str, ...]] = ("head.*",)

    name: Literal["vnet"] = "vnet"
    channels: Channels = _channels(16, 32, 64, 128, 256)
    convolutions: Convolutions = Field(
        (1, 2, 3, 3, 3), min_length=2, max_length=8, description="per level on the way down, the finest first"
    )
    convolutions_up: Convolutions = Field(
        (1, 2, 3, 3), min_length=1, max_length=7, description="per level on the way up, the finest first"
    )
    activation: Literal["prelu", "elu"] = Field("prelu", description="the paper's is prelu")
    dropout: Dropout = Field(0.0, description="of whole feature maps, at the end of each stage")

    @model_validator(mode="after")
    def _lengths(self) -> Self:
        levels = len(self.channels)
        if len(self.convolutions) != levels or len(self.convolutions_up) != levels - 1:
            raise ValueError(
                f"model.convolutions needs {levels} numbers and model.convolutions_up {levels - 1}: "
                f"model.channels has {levels}"
            )
        return self

    def multiple(self) -> int:
        """A factor of two for each level below the first."""
        return _factor(self.channels)

    def check(self, plan: Plan) -> None:
        """Also refuses a deepest level of one voxel."""
        super().check(plan)
        _refuse_one_voxel(self.channels, plan)


class ResidualUNet(Architecture):
    """Pre-activation residual units in both halves; the paper's sizes are the defaults."""

    module: ClassVar[str] = "fedmed_common.models.residual_unet"
    title: ClassVar[str] = "Deep residual U-Net, full pre-activation"
    source: ClassVar[str] = "Zhang et al. 2018, 'Road extraction by deep residual U-Net', IEEE GRSL"
    dimensions: ClassVar[tuple[int, ...]] = (2, 3)
    head: ClassVar[tuple[str, ...]] = ("head.*",)

    name: Literal["residual_unet"] = "residual_unet"
    channels: Channels = _channels(64, 128, 256, 512)

    def multiple(self) -> int:
        """A factor of two for each level below the first."""
        return _factor(self.channels)

    def check(self, plan: Plan) -> None:
        """Also refuses a deepest level of one voxel."""
        super().check(plan)
        _refuse_one_voxel(self.channels, plan)


class AttentionUNet(Architecture):
    """Gates weigh what each skip connection passes on; published: 3D, the default sizes, two gates."""

    module: ClassVar[str] = "fedmed_common.models.attention_unet"
    title: ClassVar[str] = "Attention U-Net, additive attention gates"
    source: ClassVar[str] = (
        "Oktay et al. 2018, 'Attention U-Net: learning where to look for the pancreas', MIDL"
    )
    dimensions: ClassVar[tuple[int, ...]] = (2, 3)
    head: ClassVar[tuple[str, ...]] = ("head.*",)

    name: Literal["attention_unet"] = "attention_unet"
    channels: Channels = _channels(16, 32, 64, 128, 256)
    gates: Annotated[int, Field(ge=1, le=4)] = Field(
        1, description="per skip connection; the official code joins 2"
    )

    def multiple(self) -> int:
        """A factor of two for each level below the first."""
        return _factor(self.channels)

    def check(self, plan: Plan) -> None:
        """Also refuses a deepest level of one voxel."""
        super().check(plan)
        _refuse_one_voxel(self.channels, plan)


class InceptionUNet(Architecture):
    """One inception block per level; the published sizes are the defaults."""

    module: ClassVar[str] = "fedmed_common.models.inception_unet"
    title: ClassVar[str] = "Inception U-Net"
    source: ClassVar[str] = (
        "Punn and Agarwal 2020, 'Inception U-Net architecture for semantic segmentation to identify nuclei in "
        "microscopy cell images', ACM TOMM"
    )
    dimensions: ClassVar[tuple[int, ...]] = (2, 3)
    head: ClassVar[tuple[str, ...]] = ("head.*",)

    name: Literal["inception_unet"] = "inception_unet"
    channels: Channels = _channels(16, 32, 64, 128, 256)
    dropout: Dropout = Field(0.0, description="after each block; the paper's 0.1 to 0.2")

    def multiple(self) -> int:
        """A factor of two for each level below the first."""
        return _factor(self.channels)

    def check(self, plan: Plan) -> None:
        """Also refuses a deepest level of one voxel."""
        super().check(plan)
        _refuse_one_voxel(self.channels, plan)


class R2UNet(Architecture):
    """Two recurrent convolutions and a residual connection per level; published: up to 1024 features."""

    module: ClassVar[str] = "fedmed_common.models.r2unet"
    title: ClassVar[str] = "R2U-Net, recurrent residual convolutions"
    source: ClassVar[str] = (
        "Alom et al. 2018, 'Recurrent residual convolutional neural network based on U-Net (R2U-Net)', arXiv:1802.06955"
    )
    dimensions: ClassVar[tuple[int, ...]] = (2, 3)
    head: ClassVar[tuple[str, ...]] = ("head.*",)

    name: Literal["r2unet"] = "r2unet"
    channels: Channels = _channels(32, 64, 128, 256, 512)
    steps: Annotated[int, Field(ge=1, le=8)] = Field(
        2, description="how often a convolution takes its own output again"
    )

    def multiple(self) -> int:
        """A factor of two for each level below the first."""
        return _factor(self.channels)

    def check(self, plan: Plan) -> None:
        """Also refuses a deepest level of one voxel."""
        super().check(plan)
        _refuse_one_voxel(self.channels, plan)


UNets: TypeAlias = UNet | UNet2015 | UNet3D | VNet | ResidualUNet | AttentionUNet | InceptionUNet | R2UNet
