"""The DeepLab family: dilated feature extractors, and one image seen at several rates."""

from __future__ import annotations

from math import prod
from typing import Annotated, Any, ClassVar, Literal, Self, TypeAlias

from pydantic import Field, model_validator

from fedmed_common.catalogue.base import Architecture, Plan

Width = Annotated[float, Field(ge=0.0625, le=4.0)]
Dropout = Annotated[float, Field(ge=0.0, lt=1.0)]
Rates = tuple[Annotated[int, Field(ge=1, le=64)], ...]
OutputStride = Literal[8, 16]

FINEST = 8
"""Output stride of the first two."""


def _width() -> Any:
    return Field(1.0, description="times the published features of every layer")


def _rates(*defaults: int, description: str) -> Any:
    return Field(defaults, min_length=1, max_length=8, description=description)


class _Dilated(Architecture):
    """A network whose maps are coarser than the patch by no more than ``coarsest()``."""

    def coarsest(self) -> int:
        """The output stride."""
        return FINEST

    def sizes(self) -> str:
        """More than one voxel of the coarsest map."""
        return f"one more than {self.coarsest()}"

    def check(self, plan: Plan) -> None:
        """Also refuses a coarsest map of one voxel: a norm over it leaves nothing of it."""
        super().check(plan)
        stride = self.coarsest()
        if prod(-(-size // stride) for size in plan.patch) == 1:
            raise ValueError(
                f"data.patch {list(plan.patch)}: at output stride {stride} it shrinks to one voxel, of which a norm leaves "
                f"nothing; one number must be more than {stride}"
            )


class DeepLabV1(_Dilated):
    """VGG-16, dilated, and one 3x3 convolution with a large field of view."""

    module: ClassVar[str] = "fedmed_common.models.deeplab_v1"
    title: ClassVar[str] = "DeepLab v1 (LargeFOV) on VGG-16"
    source: ClassVar[str] = (
        "Chen et al. 2015, 'Semantic image segmentation with deep convolutional nets and fully connected CRFs', ICLR"
    )
    dimensions: ClassVar[tuple[int, ...]] = (2, 3)
    head: ClassVar[tuple[str, ...]] = ("head.*",)

    name: Literal["deeplab_v1"] = "deeplab_v1"
    rate: Annotated[int, Field(ge=1, le=64)] = Field(12, description="dilation of the large field of view")
    norms: bool = Field(
        True, description="a norm after each convolution; false: none, as published, for published weights"
    )
    dropout: Dropout = Field(0.5, description="after each of the two last layers")
    width: Width = _width()


class DeepLabV2(_Dilated):
    """Logits at several dilations, summed."""

    module: ClassVar[str] = "fedmed_common.models.deeplab_v2"
    title: ClassVar[str] = "DeepLab v2, atrous spatial pyramid pooling on ResNet-101 or VGG-16"
    source: ClassVar[str] = (
        "Chen et al. 2018, 'DeepLab: semantic image segmentation with deep convolutional nets, atrous convolution, and fully "
        "connected CRFs', TPAMI"
    )
    dimensions: ClassVar[tuple[int, ...]] = (2, 3)
    head: ClassVar[tuple[str, ...]] = ("branches.*.head.*",)

    name: Literal["deeplab_v2"] = "deeplab_v2"
    backbone: Literal["resnet18", "resnet50", "resnet101", "vgg16"] = Field(
        "resnet101", description="the paper's are `resnet101` and `vgg16`"
    )
    rates: Rates = _rates(6, 12, 18, 24, description="dilations of the pyramid's branches")
    norms: bool = Field(
        True, description="of `vgg16`: a norm after each convolution; false: none, as published"
    )
    dropout: Dropout = Field(0.5, description="of `vgg16`: after each of the two wide layers of a branch")
    width: Width = _width()

    @model_validator(mode="after")
    def _resnet_has_norms(self) -> Self:
        if not self.norms and self.backbone != "vgg16":
            raise ValueError(
                f"model.norms = false is for model.backbone = 'vgg16'; '{self.backbone}' has norms"
            )
        return self


class DeepLabV3(_Dilated):
    """Features at several dilations and the image's mean, joined."""

    module: ClassVar[str] = "fedmed_common.models.deeplab_v3"
    title: ClassVar[str] = "DeepLab v3 on a dilated ResNet"
    source: ClassVar[str] = (
        "Chen et al. 2017, 'Rethinking atrous convolution for semantic image segmentation', arXiv:1706.05587"
    )
    dimensions: ClassVar[tuple[int, ...]] = (2, 3)
    head: ClassVar[tuple[str, ...]] = ("head.*",)

    name: Literal["deeplab_v3"] = "deeplab_v3"
    backbone: Literal["resnet18", "resnet50", "resnet101"] = Field(
        "resnet50", description="the paper's are `resnet50` and `resnet101`"
    )
    output_stride: OutputStride = Field(16, description="of the coarsest map: 8 is finer and slower")
    rates: Rates = _rates(6, 12, 18, description="dilations of the pyramid at output stride 16; doubled at 8")
    multi_grid: Annotated[tuple[Annotated[int, Field(ge=1, le=16)], ...], Field(max_length=3)] = Field(
        (1, 2, 4), description="factors of the last stage's dilations; empty: none"
    )
    dropout: Dropout = Field(0.1, description="before the logits")
    width: Width = _width()

    def coarsest(self) -> int:
        """As the settings say."""
        return self.output_stride


class DeepLabV3Plus(_Dilated):
    """DeepLab v3 and a decoder that sees finer features too."""

    module: ClassVar[str] = "fedmed_common.models.deeplab_v3plus"
    title: ClassVar[str] = "DeepLab v3+ on ResNet, Xception or MobileNetV2"
    source: ClassVar[str] = (
        "Chen et al. 2018, 'Encoder-decoder with atrous separable convolution for semantic image segmentation', ECCV"
    )
    dimensions: ClassVar[tuple[int, ...]] = (2, 3)
    head: ClassVar[tuple[str, ...]] = ("head.*",)

    name: Literal["deeplab_v3plus"] = "deeplab_v3plus"
    backbone: Literal["resnet18", "resnet50", "resnet101", "xception", "mobilenet_v2"] = Field(
        "resnet50", description="`xception` is the modified aligned Xception-65"
    )
    output_stride: OutputStride = Field(16, description="of the coarsest map: 8 is finer and slower")
    rates: Rates = _rates(6, 12, 18, description="dilations of the pyramid at output stride 16; doubled at 8")
    separable: bool = Field(True, description="separable convolutions in the pyramid and the decoder")
    dropout: Dropout = Field(0.1, description="after the pyramid")
    width: Width = _width()

    def coarsest(self) -> int:
        """As the settings say."""
        return self.output_stride


DeepLabs: TypeAlias = DeepLabV1 | DeepLabV2 | DeepLabV3 | DeepLabV3Plus
