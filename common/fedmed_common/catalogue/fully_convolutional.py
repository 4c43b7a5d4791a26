"""Fully convolutional networks that are not U-shaped."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, TypeAlias

from pydantic import Field

from fedmed_common.catalogue.base import Architecture, Plan

Width = Annotated[float, Field(ge=0.01, le=4.0)]
Dropout = Annotated[float, Field(ge=0.0, lt=1.0)]
Features = tuple[Annotated[int, Field(ge=1, le=4096)], ...]


def _width() -> float:
    """A field with the published sizes as its default."""
    width: float = Field(1.0, description="times the published features of every layer")
    return width


class FCN(Architecture):
    """VGG-16 made convolutional, scored at stride 32 and, by variant, at strides 16 and 8 too."""

    module: ClassVar[str] = "fedmed_common.models.fcn"
    title: ClassVar[str] = "FCN on VGG-16"
    source: ClassVar[str] = "Long et al. 2015, 'Fully convolutional networks for semantic segmentation', CVPR"
    head: ClassVar[tuple[str, ...]] = ("scores.*", "up.*", "last.*")

    name: Literal["fcn"] = "fcn"
    variant: Literal["32s", "16s", "8s"] = Field("8s", description="the finest stride that is scored")
    width: Width = _width()
    dropout: Dropout = Field(0.5, description="after each of the two wide layers")
    learned_upsampling: bool = Field(
        False, description="also of the last, which the paper keeps at bilinear interpolation"
    )

    def multiple(self) -> int:
        """Five pools."""
        return 32


class SegNet(Architecture):
    """VGG-16 and its mirror, which puts each value back where the pool had found it."""

    module: ClassVar[str] = "fedmed_common.models.segnet"
    title: ClassVar[str] = "SegNet, upsampling by the indices of the pools"
    source: ClassVar[str] = (
        "Badrinarayanan et al. 2017, 'SegNet: a deep convolutional encoder-decoder architecture for image segmentation', TPAMI"
    )
    dimensions: ClassVar[tuple[int, ...]] = (2, 3)
    head: ClassVar[tuple[str, ...]] = ("head.*",)

    name: Literal["segnet"] = "segnet"
    width: Width = _width()

    def multiple(self) -> int:
        """Five pools."""
        return 32


class PSPNet(Architecture):
    """A dilated ResNet, and means over ever larger parts of the image beside its features."""

    module: ClassVar[str] = "fedmed_common.models.pspnet"
    title: ClassVar[str] = "PSPNet on a dilated ResNet"
    source: ClassVar[str] = "Zhao et al. 2017, 'Pyramid scene parsing network', CVPR"
    dimensions: ClassVar[tuple[int, ...]] = (2, 3)
    head: ClassVar[tuple[str, ...]] = ("head.*", "auxiliary_head.*")

    name: Literal["pspnet"] = "pspnet"
    variant: Literal["resnet50", "resnet101"] = Field("resnet50", description="its ResNet")
    bins: tuple[Annotated[int, Field(ge=1, le=32)], ...] = Field(
        (1, 2, 3, 6), min_length=1, max_length=8, description="parts per axis of each level of the pyramid"
    )
    auxiliary: Annotated[float, Field(ge=0.0, le=1.0)] = Field(
        0.4, description="weight of the loss after the third stage; 0: none"
    )
    width: Width = _width()
    dropout: Dropout = Field(0.1, description="before the logits")

    def least(self) -> int:
        """At stride 8 more than one voxel, of which an instance norm would leave nothing."""
        return 16

    def measures_one_voxel(self, _plan: Plan) -> bool:
        """In the level of one part."""
        return 1 in self.bins


class HRNet(Architecture):
    """Streams of four resolutions side by side, exchanged again and again."""

    module: ClassVar[str] = "fedmed_common.models.hrnet"
    title: ClassVar[str] = "HRNetV2 with its segmentation head"
    source: ClassVar[str] = (
        "Wang et al. 2020, 'Deep high-resolution representation learning for visual recognition', TPAMI"
    )
    dimensions: ClassVar[tuple[int, ...]] = (2, 3)
    head: ClassVar[tuple[str, ...]] = ("head.*",)

    name: Literal["hrnet"] = "hrnet"
    variant: Literal["w18", "w32", "w48"] = Field("w18", description="features of the finest stream")
    modules: tuple[Annotated[int, Field(ge=1, le=8)], ...] = Field(
        (1, 4, 3), min_length=3, max_length=3, description="exchanges of the second, third and fourth stage"
    )
    blocks: Annotated[int, Field(ge=1, le=8)] = Field(
        4, description="residual blocks of each stream before an exchange"
    )
    width: Width = _width()

    def least(self) -> int:
        """At stride 32 more than one voxel, of which an instance norm would leave nothing."""
        return 33


class DeepMedic(Architecture):
    """One pathway at full resolution and one on the image three times as coarse, joined before the logits."""

    module: ClassVar[str] = "fedmed_common.models.deepmedic"
    title: ClassVar[str] = "DeepMedic, two pathways"
    source: ClassVar[str] = (
        "Kamnitsas et al. 2017, 'Efficient multi-scale 3D CNN with fully connected CRF for accurate brain lesion "
        "segmentation', Medical Image Analysis"
    )
    dimensions: ClassVar[tuple[int, ...]] = (2, 3)
    head: ClassVar[tuple[str, ...]] = ("head.*",)

    name: Literal["deepmedic"] = "deepmedic"
    features: Features = Field(
        (30, 30, 40, 40, 40, 40, 50, 50),
        min_length=1,
        max_length=16,
        description="of each convolution of a pathway",
    )
    joined: Features = Field(
        (150, 150), min_length=1, max_length=4, description="features of the layers after both pathways"
    )
    width: Width = _width()
    dropout: Dropout = Field(0.5, description="before the last joined layer and the logits")

    def least(self) -> int:
        """In the coarse pathway more than one voxel, of which an instance norm would leave nothing."""
        return 4


FullyConvolutional: TypeAlias = FCN | SegNet | PSPNet | HRNet | DeepMedic
