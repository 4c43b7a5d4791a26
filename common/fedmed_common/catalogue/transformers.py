"""Transformers, and networks with one as their encoder."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, TypeAlias

from pydantic import Field

from fedmed_common.catalogue.base import Architecture, Halving, Plan

Rate = Annotated[float, Field(ge=0.0, lt=1.0)]
Size = Annotated[int, Field(ge=1, le=8192)]
Count = Annotated[int, Field(ge=1, le=64)]


class SegFormer(Architecture):
    """A hierarchical transformer without position codes, and a decoder of linear layers."""

    module: ClassVar[str] = "fedmed_common.models.segformer"
    title: ClassVar[str] = "SegFormer"
    source: ClassVar[str] = (
        "Xie et al. 2021, 'SegFormer: simple and efficient design for semantic segmentation with transformers', NeurIPS"
    )
    head: ClassVar[tuple[str, ...]] = ("network.decode_head.classifier.*",)
    attention: ClassVar[tuple[str, ...]] = ("*.attention.q_proj", "*.attention.v_proj")
    packages: ClassVar[tuple[str, ...]] = ("transformers",)

    name: Literal["segformer"] = "segformer"
    variant: Literal["tiny", "b0", "b1", "b2", "b3", "b4", "b5"] = Field(
        "b0", description="b0 to b5 are published; tiny, of one block a stage, is for trying out"
    )
    drop_path: Rate = Field(0.1, description="of the last block, falling to 0 at the first")
    dropout: Rate = Field(0.1, description="before the last layer")

    def least(self) -> int:
        """The first stages' keys lie on a grid of one in 32."""
        return 32


class UNETR(Halving):
    """A vision transformer on the whole patch, of which layers 4, 7, 10 and 12 feed a convolutional decoder."""

    module: ClassVar[str] = "fedmed_common.models.unetr"
    title: ClassVar[str] = "UNETR"
    source: ClassVar[str] = (
        "Hatamizadeh et al. 2022, 'UNETR: transformers for 3D medical image segmentation', WACV"
    )
    dimensions: ClassVar[tuple[int, ...]] = (2, 3)
    head: ClassVar[tuple[str, ...]] = ("out.*",)
    attention: ClassVar[tuple[str, ...]] = ("*.attn.qkv",)

    name: Literal["unetr"] = "unetr"
    features: Size = Field(16, description="of the finest level; each coarser one doubles them")
    hidden: Size = Field(768, description="length of a token")
    mlp: Size = Field(3072, description="width of the transformer's linear layers")
    heads: Count = 12
    dropout: Rate = 0.0

    def multiple(self) -> int:
        """Pieces of 16 voxels along each axis."""
        return 16

    def check(self, plan: Plan) -> None:
        """Also refuses tokens that the heads cannot share."""
        super().check(plan)
        if self.hidden % self.heads:
            raise ValueError(f"model.hidden ({self.hidden}) is not a multiple of model.heads ({self.heads})")


class SwinUNETR(Halving):
    """A transformer with shifted windows at four levels, and a convolutional decoder."""

    module: ClassVar[str] = "fedmed_common.models.swin_unetr"
    title: ClassVar[str] = "Swin UNETR"
    source: ClassVar[str] = (
        "Hatamizadeh et al. 2022, 'Swin UNETR: Swin transformers for semantic segmentation of brain tumors in MRI images', "
        "BrainLes; version 2: He et al. 2023, 'SwinUNETR-V2', MICCAI"
    )
    dimensions: ClassVar[tuple[int, ...]] = (2, 3)
    head: ClassVar[tuple[str, ...]] = ("out.*",)
    attention: ClassVar[tuple[str, ...]] = ("*.attn.qkv",)

    name: Literal["swin_unetr"] = "swin_unetr"
    features: Annotated[int, Field(ge=12, le=768, multiple_of=12)] = Field(
        48, description="of the first level, a multiple of 12; each further one doubles them"
    )
    depths: tuple[Count, Count, Count, Count] = Field((2, 2, 2, 2), description="blocks per level")
    heads: tuple[Count, Count, Count, Count] = Field((3, 6, 12, 24), description="per level")
    window: Annotated[int, Field(ge=2, le=32)] = Field(
        7, description="tokens per axis that attend to each other"
    )
    drop_path: Rate = Field(0.0, description="of the last block, falling to 0 at the first")
    dropout: Rate = 0.0
    version: Literal[1, 2] = Field(1, description="2: a residual convolution before each level")

    def multiple(self) -> int:
        """Five halvings."""
        return 32

    def check(self, plan: Plan) -> None:
        """Also refuses features that the heads cannot share."""
        super().check(plan)
        for level, heads in enumerate(self.heads):
            if self.features * 2**level % heads:
                raise ValueError(
                    f"model.heads: {heads} heads cannot share the {self.features * 2**level} features of level {level + 1}"
                )


class SAM(Architecture):
    """An image encoder, frozen, and a decoder that segments what a prompt, drawn from the reference label, points at."""

    module: ClassVar[str] = "fedmed_common.models.sam"
    title: ClassVar[str] = "Segment Anything (SAM), prompted"
    source: ClassVar[str] = "Kirillov et al. 2023, 'Segment anything', ICCV"
    head: ClassVar[tuple[str, ...]] = ("network.mask_decoder.*",)
    attention: ClassVar[tuple[str, ...]] = ("network.vision_encoder.layers.*.attn.qkv",)
    packages: ClassVar[tuple[str, ...]] = ("transformers",)
    exports: ClassVar[bool] = False
    prompted: ClassVar[bool] = True

    name: Literal["sam"] = "sam"
    variant: Literal["tiny", "vit_b", "vit_l", "vit_h"] = Field(
        "vit_b", description="vit_b, vit_l and vit_h are published; tiny is for trying out"
    )
    image_size: Annotated[int, Field(ge=32, le=2048, multiple_of=16)] = Field(
        1024, description="the patch is scaled to this; published weights need 1024"
    )
    prompts: Literal["box", "point"] = Field(
        "box", description="of each class in the label: its bounding box, or its most interior voxel"
    )
    box_margin: Annotated[int, Field(ge=0, le=512)] = Field(
        2, description="voxels between a class and its box, on each side"
    )
    train_encoder: bool = Field(False, description="train the image encoder too")


Transformers: TypeAlias = SegFormer | UNETR | SwinUNETR | SAM
