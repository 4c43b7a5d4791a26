"""U-Nets since 2018."""

from __future__ import annotations

from math import prod
from typing import Annotated, ClassVar, Literal, Self, TypeAlias

from pydantic import Field, model_validator

from fedmed_common.catalogue.base import Architecture, Halving, Plan
from fedmed_common.catalogue.stages import LEAST_EDGE, Axes, plan_stages

Channels = tuple[Annotated[int, Field(ge=1, le=4096)], ...]
Kernel = tuple[Annotated[int, Field(ge=1, le=15)], ...]
Stride = tuple[Annotated[int, Field(ge=1, le=2)], ...]

LEAST_STAGES = 3
"""Of a DynUNet."""


class SegResNet(Halving):
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
    blocks_up: tuple[Annotated[int, Field(ge=1, le=16)], ...] = Field(
        (1, 1, 1), min_length=1, max_length=7, description="one number less than blocks_down"
    )
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0

    @model_validator(mode="after")
    def _up_as_down(self) -> Self:
        if len(self.blocks_up) != len(self.blocks_down) - 1:
            raise ValueError(
                f"model.blocks_up has {len(self.blocks_up)} numbers; beside {len(self.blocks_down)} in model.blocks_down it "
                f"needs {len(self.blocks_down) - 1}"
            )
        return self

    def multiple(self) -> int:
        """A factor of two for each level below the first."""
        return int(2 ** (len(self.blocks_down) - 1))


class DenseUNet(Architecture):
    """Dense blocks on the way down, at the bottom and on the way up; the defaults are FC-DenseNet103."""

    module: ClassVar[str] = "fedmed_common.models.dense_unet"
    title: ClassVar[str] = "Dense U-Net (FC-DenseNet, Tiramisu)"
    source: ClassVar[str] = (
        "Jégou et al. 2017, 'The one hundred layers Tiramisu: fully convolutional DenseNets for semantic segmentation', CVPRW"
    )
    dimensions: ClassVar[tuple[int, ...]] = (2, 3)
    head: ClassVar[tuple[str, ...]] = ("head.*",)

    name: Literal["dense_unet"] = "dense_unet"
    growth: Annotated[int, Field(ge=1, le=256)] = Field(16, description="features that each layer adds")
    blocks: tuple[Annotated[int, Field(ge=1, le=64)], ...] = Field(
        (4, 5, 7, 10, 12, 15),
        min_length=2,
        max_length=8,
        description="layers of each level's dense block, the finest first, the last is the bottom; the way up mirrors them",
    )
    stem: Annotated[int, Field(ge=1, le=1024)] = Field(48, description="features of the first convolution")
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.2

    def multiple(self) -> int:
        """A factor of two for each level below the first."""
        return int(2 ** (len(self.blocks) - 1))

    def least(self) -> int:
        """Two voxels at the bottom, or its norm has nothing to normalise."""
        return 2 * self.multiple()


class UNetPlusPlus(Architecture):
    """Nested, dense skip pathways; the defaults are the published sizes."""

    module: ClassVar[str] = "fedmed_common.models.unetplusplus"
    title: ClassVar[str] = "U-Net++, with deep supervision and pruning"
    source: ClassVar[str] = (
        "Zhou et al. 2020, 'UNet++: redesigning skip connections to exploit multiscale features in image segmentation', TMI 39"
    )
    dimensions: ClassVar[tuple[int, ...]] = (2, 3)
    head: ClassVar[tuple[str, ...]] = ("heads.*",)

    name: Literal["unetplusplus"] = "unetplusplus"
    channels: Channels = Field(
        (32, 64, 128, 256, 512), min_length=2, max_length=8, description="features per level"
    )
    deep_supervision: bool = Field(True, description="every branch has a head of its own and learns")
    prune: Annotated[int, Field(ge=1, le=7)] | None = Field(
        None, description="build only the network that ends in this branch; absent: all of it"
    )

    @model_validator(mode="after")
    def _branch_exists(self) -> Self:
        if self.prune is not None and self.prune >= len(self.channels):
            raise ValueError(
                f"model.prune = {self.prune}: {len(self.channels)} levels have branches 1 to {len(self.channels) - 1}"
            )
        return self

    def depth(self) -> int:
        """Levels below the first."""
        return self.prune or len(self.channels) - 1

    def multiple(self) -> int:
        """A factor of two for each level below the first."""
        return int(2 ** self.depth())

    def least(self) -> int:
        """Two voxels at the bottom, or its norm has nothing to normalise."""
        return 2 * self.multiple()


class UNeXt(Architecture):
    """Three convolutional levels, then two of tokens that shifted MLPs mix; the defaults are the published sizes."""

    module: ClassVar[str] = "fedmed_common.models.unext"
    title: ClassVar[str] = "UNeXt, convolutions and tokenized MLPs"
    source: ClassVar[str] = (
        "Valanarasu and Patel 2022, 'UNeXt: MLP-based rapid medical image segmentation network', MICCAI"
    )
    head: ClassVar[tuple[str, ...]] = ("head.*",)

    name: Literal["unext"] = "unext"
    channels: Channels = Field(
        (16, 32, 128, 160, 256),
        min_length=5,
        max_length=5,
        description="features per level; two are of tokens",
    )
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0

    def multiple(self) -> int:
        """Five halvings."""
        return 32

    def least(self) -> int:
        """Two voxels at the bottom, or its norm has nothing to normalise."""
        return 64


class DynUNet(Architecture):
    """nnU-Net's template: kernels and strides follow from ``data.patch`` and ``data.spacing_mm``, or are given."""

    module: ClassVar[str] = "fedmed_common.models.dynunet"
    title: ClassVar[str] = "DynUNet, the U-Net of nnU-Net"
    source: ClassVar[str] = (
        "Isensee et al. 2021, 'nnU-Net: a self-configuring method for deep learning-based biomedical image segmentation', "
        "Nature Methods 18"
    )
    dimensions: ClassVar[tuple[int, ...]] = (2, 3)
    head: ClassVar[tuple[str, ...]] = ("output_block.*", "deep_supervision_heads.*")

    name: Literal["dynunet"] = "dynunet"
    features: Annotated[int, Field(ge=1, le=1024)] = Field(
        32, description="of the first level; each further one doubles them"
    )
    features_limit: Annotated[int, Field(ge=1, le=4096)] | None = Field(
        None, description="no level has more; absent: 320 in 3D, 512 in 2D"
    )
    kernels: tuple[Kernel, ...] | None = Field(
        None, min_length=3, max_length=9, description="per level and axis; absent: derived"
    )
    strides: tuple[Stride, ...] | None = Field(
        None, min_length=3, max_length=9, description="per level and axis, the first all 1; absent: derived"
    )
    deep_supervision: bool = Field(True, description="coarser levels have heads of their own and learn")

    @model_validator(mode="after")
    def _both_or_neither(self) -> Self:
        if len(self.kernels or ()) != len(self.strides or ()):
            raise ValueError("give model.kernels and model.strides together, one entry each for every level")
        if self.kernels and any(size % 2 == 0 for kernel in self.kernels for size in kernel):
            raise ValueError("model.kernels must be odd, so that maps keep their size")
        if self.strides and any(step != 1 for step in self.strides[0]):
            raise ValueError(
                "model.strides must begin with 1 along every axis: the output is as fine as the patch"
            )
        return self

    def stages(self, plan: Plan) -> tuple[tuple[Axes, ...], tuple[Axes, ...]]:
        """Kernels and strides of each level, the finest first."""
        if self.kernels and self.strides:
            return self.kernels, self.strides
        spacing_mm = plan.spacing_mm and plan.spacing_mm[: plan.dimensions]
        return plan_stages(plan.patch, spacing_mm)

    def sizes(self) -> str:
        """They follow from the patch."""
        return "what its strides divide"

    def check(self, plan: Plan) -> None:
        """Also refuses a patch that its strides do not divide, and one for which less than three levels are derived."""
        super().check(plan)
        kernels, strides = self.stages(plan)
        if any(len(entry) != plan.dimensions for entry in (*kernels, *strides)):
            raise ValueError(
                f"model.kernels and model.strides need {plan.dimensions} numbers a level, as task.dimensions is {plan.dimensions}"
            )
        if len(strides) < LEAST_STAGES:
            least = LEAST_EDGE * 2 ** (LEAST_STAGES - 1)
            raise ValueError(
                f"data.patch {list(plan.patch)}: its longest axis is less than {least}, the least that this 'dynunet' needs"
            )
        shrunk = [prod(steps) for steps in zip(*strides, strict=True)]
        for size, factor in zip(plan.patch, shrunk, strict=True):
            if size % factor:
                raise ValueError(
                    f"data.patch {list(plan.patch)}: {size} is not a multiple of {factor}, as this 'dynunet' needs; "
                    f"its axes need multiples of {shrunk}"
                )
        if prod(plan.patch) == prod(shrunk):
            raise ValueError(
                f"model.strides shrink a patch of {list(plan.patch)} to one voxel; use fewer levels"
            )


class MedNeXt(Architecture):
    """A U-Net of ConvNeXt blocks, also where it goes down and up."""

    module: ClassVar[str] = "fedmed_common.models.mednext"
    title: ClassVar[str] = "MedNeXt, sizes S, B, M and L"
    source: ClassVar[str] = (
        "Roy et al. 2023, 'MedNeXt: transformer-driven scaling of ConvNets for medical image segmentation', MICCAI"
    )
    dimensions: ClassVar[tuple[int, ...]] = (2, 3)
    head: ClassVar[tuple[str, ...]] = ("out_0.*", "out_blocks.*")

    name: Literal["mednext"] = "mednext"
    variant: Literal["S", "B", "M", "L"] = Field("S", description="how many blocks, and how far each expands")
    kernel: Literal[3, 5] = 3
    features: Annotated[int, Field(ge=1, le=1024)] = Field(
        32, description="of the first level; each further one doubles them"
    )
    deep_supervision: bool = Field(True, description="coarser levels have heads of their own and learn")

    def multiple(self) -> int:
        """Four halvings."""
        return 16

    def least(self) -> int:
        """Two voxels at the bottom, or its norm has nothing to normalise."""
        return 32


ModernUNets: TypeAlias = SegResNet | DenseUNet | UNetPlusPlus | UNeXt | DynUNet | MedNeXt
