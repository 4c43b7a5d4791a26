"""Networks that give one answer for a whole image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal, TypeAlias

from pydantic import Field

from fedmed_common.catalogue.base import NORMS, Architecture, Norm, Plan

Width = Annotated[float, Field(gt=0.0, le=4.0)]
Dropout = Annotated[float, Field(ge=0.0, lt=1.0)]
SLICES = 3
"""That TransMed takes at a time."""
_WIDTH = "multiplies all channels; 1 is the published size"


class Classifier(Architecture):
    """``(B, in_channels, *patch)`` to logits ``(B, classes)``.

    ``stride``: by how much the last maps that a norm sees are coarser than the image. Any size is taken; with an
    instance norm, one that leaves these maps more than one voxel, of which it would leave nothing.
    """

    tasks: ClassVar[frozenset[str]] = frozenset({"classification"})
    stride: ClassVar[int] = 32

    norm: Norm = Field("group", description=NORMS)
    width: Width = Field(1.0, description=_WIDTH)

    def least(self) -> int:
        """With an instance norm, one voxel more than the stride."""
        return self.stride + 1 if self.norm == "instance" else 1

    def measures_one_voxel(self, plan: Plan) -> bool:
        """Where the patch is no larger than the stride."""
        return all(size <= self.stride for size in plan.patch)


class AlexNet(Classifier):
    """Five convolutions and three fully connected layers."""

    module: ClassVar[str] = "fedmed_common.models.alexnet"
    title: ClassVar[str] = "AlexNet, in one column"
    source: ClassVar[str] = (
        "Krizhevsky et al. 2012, 'ImageNet classification with deep convolutional neural networks', NeurIPS; "
        "Krizhevsky 2014, 'One weird trick for parallelizing convolutional neural networks'"
    )
    head: ClassVar[tuple[str, ...]] = ("classifier.6.*",)

    name: Literal["alexnet"] = "alexnet"
    normalise: bool = Field(True, description="a norm after each convolution; the paper has none")
    dropout: Dropout = 0.5

    def least(self) -> int:
        """What the first strides and the three pools leave something of."""
        return 63


class VGG(Classifier):
    """3x3 convolutions in five groups, a pool after each, and three fully connected layers."""

    module: ClassVar[str] = "fedmed_common.models.vgg"
    title: ClassVar[str] = "VGG with 11, 13, 16 or 19 layers"
    source: ClassVar[str] = (
        "Simonyan and Zisserman 2015, 'Very deep convolutional networks for large-scale image recognition', ICLR, table 1"
    )
    head: ClassVar[tuple[str, ...]] = ("classifier.6.*",)

    stride: ClassVar[int] = 16

    name: Literal["vgg"] = "vgg"
    depth: Literal[11, 13, 16, 19] = Field(16, description="layers with weights")
    normalise: bool = Field(True, description="a norm after each convolution; the paper has none")
    dropout: Dropout = 0.5

    def least(self) -> int:
        """What the five pools leave something of."""
        return 32


class GoogLeNet(Classifier):
    """Nine inception modules, and two auxiliary classifiers in training."""

    module: ClassVar[str] = "fedmed_common.models.googlenet"
    title: ClassVar[str] = "GoogLeNet (Inception v1)"
    source: ClassVar[str] = "Szegedy et al. 2015, 'Going deeper with convolutions', CVPR, table 1"
    head: ClassVar[tuple[str, ...]] = ("fc.*", "aux?.fc2.*")

    name: Literal["googlenet"] = "googlenet"
    auxiliary: bool = Field(
        True, description="two more classifiers within, each at weight 0.3, while it trains"
    )
    dropout: Dropout = 0.4


class InceptionV3(Classifier):
    """Inception modules with factorised convolutions, and an auxiliary classifier in training."""

    module: ClassVar[str] = "fedmed_common.models.inception_v3"
    title: ClassVar[str] = "Inception v3"
    source: ClassVar[str] = (
        "Szegedy et al. 2016, 'Rethinking the Inception architecture for computer vision', CVPR, table 1"
    )
    head: ClassVar[tuple[str, ...]] = ("fc.*", "AuxLogits.fc.*")

    name: Literal["inception_v3"] = "inception_v3"
    auxiliary: bool = Field(True, description="one more classifier within, at weight 0.4, while it trains")
    dropout: Dropout = 0.5

    def least(self) -> int:
        """What the stem, which does not pad, and the two reductions leave at least two voxels of."""
        return 75 + 32


class XceptionClassifier(Classifier):
    """Depthwise separable convolutions in three flows."""

    module: ClassVar[str] = "fedmed_common.models.xception_classifier"
    title: ClassVar[str] = "Xception"
    source: ClassVar[str] = (
        "Chollet 2017, 'Xception: deep learning with depthwise separable convolutions', CVPR, figure 5"
    )
    dimensions: ClassVar[tuple[int, ...]] = (2, 3)
    head: ClassVar[tuple[str, ...]] = ("fc.*",)

    name: Literal["xception"] = "xception"
    dropout: Dropout = 0.5


class ResNetClassifier(Classifier):
    """Residual blocks in four stages."""

    module: ClassVar[str] = "fedmed_common.models.resnet_classifier"
    title: ClassVar[str] = "ResNet with 18, 34, 50, 101 or 152 layers"
    source: ClassVar[str] = "He et al. 2016, 'Deep residual learning for image recognition', CVPR, table 1"
    dimensions: ClassVar[tuple[int, ...]] = (2, 3)
    head: ClassVar[tuple[str, ...]] = ("fc.*",)

    name: Literal["resnet"] = "resnet"
    depth: Literal[18, 34, 50, 101, 152] = Field(18, description="layers with weights")


class DenseNet(Classifier):
    """Blocks whose layers each see all before them."""

    module: ClassVar[str] = "fedmed_common.models.densenet"
    title: ClassVar[str] = "DenseNet with 121, 169 or 201 layers"
    source: ClassVar[str] = "Huang et al. 2017, 'Densely connected convolutional networks', CVPR, table 1"
    dimensions: ClassVar[tuple[int, ...]] = (2, 3)
    head: ClassVar[tuple[str, ...]] = ("classifier.*",)

    name: Literal["densenet"] = "densenet"
    depth: Literal[121, 169, 201] = Field(121, description="layers with weights")
    dropout: Dropout = 0.0

    def least(self) -> int:
        """What the stem and three transitions leave something of; with an instance norm two voxels."""
        return 64 if self.norm == "instance" else 32

    def measures_one_voxel(self, plan: Plan) -> bool:
        """Where the transitions, which do not pad, leave one."""
        return all(size < 2 * self.stride for size in plan.patch)


class EfficientNet(Classifier):
    """Inverted bottlenecks with squeeze and excitation, scaled in width and depth at once."""

    module: ClassVar[str] = "fedmed_common.models.efficientnet"
    title: ClassVar[str] = "EfficientNet B0 to B7, EfficientNetV2 S, M and L"
    source: ClassVar[str] = (
        "Tan and Le 2019, 'EfficientNet: rethinking model scaling for convolutional neural networks', ICML; "
        "Tan and Le 2021, 'EfficientNetV2: smaller models and faster training', ICML"
    )
    dimensions: ClassVar[tuple[int, ...]] = (2, 3)
    head: ClassVar[tuple[str, ...]] = ("classifier.*",)

    name: Literal["efficientnet"] = "efficientnet"
    variant: Literal["b0", "b1", "b2", "b3", "b4", "b5", "b6", "b7", "v2-s", "v2-m", "v2-l"] = "b0"
    dropout: Dropout = Field(0.2, description="before the classifier")
    drop_path: Dropout = Field(
        0.0, description="share of samples that skip a block, growing towards the last one"
    )


class VisionTransformer(Classifier):
    """What ViT, DeiT and CaiT have in common: square pieces of the image as tokens."""

    stride: ClassVar[int] = 16
    dimensions: ClassVar[tuple[int, ...]] = (2, 3)
    attention: ClassVar[tuple[str, ...]] = ("*.attn.qkv", "*.attn.proj")

    piece: Annotated[int, Field(ge=1, le=64)] = Field(16, description="edge of a token, in voxels")
    layers: Annotated[int, Field(ge=1, le=64)] | None = Field(None, description="absent: as published")
    dropout: Dropout = 0.0
    drop_path: Dropout = Field(
        0.0, description="share of samples that skip a block, growing towards the last one"
    )
    width: Width = Field(1.0, description="multiplies the number of heads; 1 is the published size")

    def multiple(self) -> int:
        """Whole pieces."""
        return self.piece

    def measures_one_voxel(self, _plan: Plan) -> bool:
        """Its norms are layer norms, whatever ``norm`` says."""
        return False

    def least(self) -> int:
        """One piece: its norms are layer norms, whatever ``norm`` says."""
        return self.piece


class ViT(VisionTransformer):
    """An encoder over pieces of the image and a class token."""

    module: ClassVar[str] = "fedmed_common.models.vit"
    title: ClassVar[str] = "Vision Transformer"
    source: ClassVar[str] = "Dosovitskiy et al. 2021, 'An image is worth 16x16 words', ICLR, table 1"
    head: ClassVar[tuple[str, ...]] = ("head.*",)

    name: Literal["vit"] = "vit"
    variant: Literal["base", "large", "huge"] = "base"


class DeiT(VisionTransformer):
    """A small ViT, where wanted with a second token and head."""

    module: ClassVar[str] = "fedmed_common.models.deit"
    title: ClassVar[str] = "Data-efficient image transformer"
    source: ClassVar[str] = (
        "Touvron et al. 2021, 'Training data-efficient image transformers and distillation through attention', ICML, table 1"
    )
    head: ClassVar[tuple[str, ...]] = ("head.*", "head_dist.*")

    name: Literal["deit"] = "deit"
    variant: Literal["tiny", "small", "base"] = "small"
    distilled: bool = Field(
        False,
        description="with the distillation token and its head, both trained on the labels, as no teacher leaves a site",
    )


class CaiT(VisionTransformer):
    """Deep: the class token joins only in the last two layers."""

    module: ClassVar[str] = "fedmed_common.models.cait"
    title: ClassVar[str] = "Class-attention in image transformers"
    source: ClassVar[str] = "Touvron et al. 2021, 'Going deeper with image transformers', ICCV, table 3"
    head: ClassVar[tuple[str, ...]] = ("head.*",)

    name: Literal["cait"] = "cait"
    variant: Literal["xxs24", "xxs36", "xs24", "xs36", "s24", "s36", "s48", "m24", "m36", "m48"] = "xxs24"
    drop_path: Dropout = Field(0.0, description="share of samples that skip a block, the same for each block")


class TransMed(Classifier):
    """A ResNet on slices, three at a time, and a DeiT across all of them."""

    module: ClassVar[str] = "fedmed_common.models.transmed"
    title: ClassVar[str] = "TransMed"
    source: ClassVar[str] = (
        "Dai et al. 2021, 'TransMed: transformers advance multi-modal medical image classification', Diagnostics 11(8)"
    )
    dimensions: ClassVar[tuple[int, ...]] = (2, 3)
    head: ClassVar[tuple[str, ...]] = ("head.*",)
    attention: ClassVar[tuple[str, ...]] = ("*.attn.qkv", "*.attn.proj")

    name: Literal["transmed"] = "transmed"
    variant: Literal["tiny", "small", "base"] = Field(
        "tiny", description="ResNet-18, 34 or 50 with DeiT tiny, small or base"
    )
    layers: Annotated[int, Field(ge=1, le=64)] | None = Field(
        None, description="of the transformer; absent: twelve"
    )
    dropout: Dropout = 0.0

    def measures_one_voxel(self, plan: Plan) -> bool:
        """Where the slices are no larger than the stride, and no more than are taken at a time."""
        return all(size <= self.stride for size in plan.patch[:2]) and all(
            size <= SLICES for size in plan.patch[2:]
        )

    def _check_sizes(self, patch: Sequence[int]) -> None:
        """Any number of slices will do."""
        super()._check_sizes(patch[:2])


Classifiers: TypeAlias = (
    AlexNet
    | VGG
    | GoogLeNet
    | InceptionV3
    | XceptionClassifier
    | ResNetClassifier
    | DenseNet
    | EfficientNet
    | ViT
    | DeiT
    | CaiT
    | TransMed
)
