"""Networks made of several: an adversary, a cascade, an ensemble, three planes, a recurrence along z."""

from __future__ import annotations

from collections.abc import Sequence
from math import lcm
from typing import Annotated, ClassVar, Literal, TypeAlias

from pydantic import Field

from fedmed_common.catalogue.base import Architecture

Channels = tuple[Annotated[int, Field(ge=1, le=4096)], ...]
Dropout = Annotated[float, Field(ge=0.0, lt=1.0)]

SIZES = (16, 32, 64, 128)


def _factor(channels: Channels) -> int:
    return int(2 ** (len(channels) - 1))


class Adversarial(Architecture):
    """A U-Net, and while training a discriminator that tells its segmentations from labels."""

    module: ClassVar[str] = "fedmed_common.models.adversarial"
    title: ClassVar[str] = "U-Net trained against a discriminator"
    source: ClassVar[str] = (
        "Luc et al. 2016, 'Semantic segmentation using adversarial networks', NIPS workshop on adversarial training; "
        "Ganin and Lempitsky 2015, 'Unsupervised domain adaptation by backpropagation', ICML"
    )
    dimensions: ClassVar[tuple[int, ...]] = (2, 3)
    head: ClassVar[tuple[str, ...]] = ("segmentor.head.*", "discriminator.first.*")

    name: Literal["adversarial"] = "adversarial"
    channels: Channels = Field(
        SIZES, min_length=2, max_length=8, description="features per level of the U-Net"
    )
    discriminator: Channels = Field(
        (16, 32, 64), min_length=1, max_length=8, description="features per level of the discriminator"
    )
    weight: Annotated[float, Field(ge=0.0, le=100.0)] = Field(
        0.1,
        description="of the adversarial gradient that reaches the U-Net; 0: the discriminator only looks on",
    )
    dropout: Dropout = 0.0

    def multiple(self) -> int:
        """A factor of two for each level below the first, of the U-Net or of the discriminator, whichever is deeper."""
        return int(2 ** max(len(self.channels) - 1, len(self.discriminator)))

    def least(self) -> int:
        """Two voxels at the bottom, or its norm has nothing to normalise."""
        return 2 * self.multiple()


class Cascade(Architecture):
    """A U-Net on the image made coarse, and one on the image and the first one's probabilities."""

    module: ClassVar[str] = "fedmed_common.models.cascade"
    title: ClassVar[str] = "Cascade of a coarse and a fine U-Net"
    source: ClassVar[str] = (
        "Roth et al. 2018, 'An application of cascaded 3D fully convolutional networks for medical image segmentation', "
        "Computerized Medical Imaging and Graphics 66; Isensee et al. 2021, Nature Methods 18"
    )
    dimensions: ClassVar[tuple[int, ...]] = (2, 3)
    head: ClassVar[tuple[str, ...]] = ("coarse.head.*", "fine.head.*", "fine.left.0.0.0.*")

    name: Literal["cascade"] = "cascade"
    channels: Channels = Field(
        SIZES, min_length=2, max_length=8, description="features per level of the fine U-Net"
    )
    coarse_channels: Channels = Field(
        SIZES, min_length=2, max_length=8, description="features per level of the coarse one"
    )
    factor: Annotated[int, Field(ge=2, le=8)] = Field(
        2, description="how many voxels the coarse one sees as one"
    )
    dropout: Dropout = 0.0

    def multiple(self) -> int:
        """The fine one halves the patch, the coarse one the patch over ``factor``, once for each level below the first."""
        return lcm(_factor(self.channels), self.factor * _factor(self.coarse_channels))

    def least(self) -> int:
        """Two voxels at the bottom, or its norm has nothing to normalise."""
        return 2 * self.multiple()


class Ensemble(Architecture):
    """Several U-Nets, whose probabilities are averaged."""

    module: ClassVar[str] = "fedmed_common.models.ensemble"
    title: ClassVar[str] = "Ensemble of U-Nets"
    source: ClassVar[str] = (
        "Kamnitsas et al. 2018, 'Ensembles of multiple models and architectures for robust brain tumour segmentation', BrainLes; "
        "Lakshminarayanan et al. 2017, 'Simple and scalable predictive uncertainty estimation using deep ensembles', NIPS"
    )
    dimensions: ClassVar[tuple[int, ...]] = (2, 3)
    head: ClassVar[tuple[str, ...]] = ("members.*.head.*",)

    name: Literal["ensemble"] = "ensemble"
    members: (
        Annotated[int, Field(ge=2, le=16)]
        | Annotated[
            tuple[Annotated[Channels, Field(min_length=2, max_length=8)], ...],
            Field(min_length=2, max_length=16),
        ]
    ) = Field(3, description="how many, all of ``channels``; or the features per level of each")
    channels: Channels = Field(
        SIZES, min_length=2, max_length=8, description="features per level, where members is a number"
    )
    dropout: Dropout = 0.0

    def each(self) -> tuple[Channels, ...]:
        """Features per level of each member."""
        return (self.channels,) * self.members if isinstance(self.members, int) else self.members

    def multiple(self) -> int:
        """A factor of two for each level of the deepest member below the first."""
        return max(_factor(channels) for channels in self.each())

    def least(self) -> int:
        """Two voxels at the bottom, or its norm has nothing to normalise."""
        return 2 * self.multiple()


class Planes(Architecture):
    """Three 2D U-Nets over the slices of a volume along each axis."""

    module: ClassVar[str] = "fedmed_common.models.planes"
    title: ClassVar[str] = "2.5D: U-Nets over axial, coronal and sagittal slices"
    source: ClassVar[str] = (
        "Roy et al. 2019, 'QuickNAT: a fully convolutional network for quick and accurate segmentation of neuroanatomy', "
        "NeuroImage 186; Roth et al. 2014, 'A new 2.5D representation for lymph node detection', MICCAI"
    )
    dimensions: ClassVar[tuple[int, ...]] = (3,)
    head: ClassVar[tuple[str, ...]] = ("views.*.head.*", "fusion.*")

    name: Literal["planes"] = "planes"
    channels: Channels = Field(
        SIZES, min_length=2, max_length=8, description="features per level of each U-Net"
    )
    neighbours: Annotated[int, Field(ge=0, le=8)] = Field(
        1, description="slices on either side that a U-Net sees as channels"
    )
    fusion: Literal["mean", "learned"] = Field(
        "mean", description="of log-probabilities; learned: by a 1x1x1 convolution, which starts as the mean"
    )
    dropout: Dropout = 0.0

    def multiple(self) -> int:
        """A factor of two for each level below the first."""
        return _factor(self.channels)

    def least(self) -> int:
        """Two voxels at the bottom, or its norm has nothing to normalise."""
        return 2 * self.multiple()


class ConvLSTM(Architecture):
    """A 2D U-Net for each slice, whose features know those of the slices above and below."""

    module: ClassVar[str] = "fedmed_common.models.convlstm"
    title: ClassVar[str] = "U-Net per slice with a bidirectional ConvLSTM along z"
    source: ClassVar[str] = (
        "Shi et al. 2015, 'Convolutional LSTM network: a machine learning approach for precipitation nowcasting', NIPS; "
        "Chen et al. 2016, 'Combining fully convolutional and recurrent neural networks for 3D biomedical image segmentation', "
        "NIPS"
    )
    dimensions: ClassVar[tuple[int, ...]] = (3,)
    head: ClassVar[tuple[str, ...]] = ("slices.head.*",)

    name: Literal["convlstm"] = "convlstm"
    channels: Channels = Field(
        SIZES, min_length=2, max_length=8, description="features per level of the U-Net"
    )
    recurrent: Literal["bottom", "all"] = Field(
        "bottom", description="which levels of the encoder run through a ConvLSTM"
    )
    dropout: Dropout = 0.0

    def multiple(self) -> int:
        """A factor of two for each level below the first, along x and y."""
        return _factor(self.channels)

    def least(self) -> int:
        """Two voxels at the bottom, or its norm has nothing to normalise."""
        return 2 * self.multiple()

    def _check_sizes(self, patch: Sequence[int]) -> None:
        """Any number of slices."""
        super()._check_sizes(patch[:2])


Composed: TypeAlias = Adversarial | Cascade | Ensemble | Planes | ConvLSTM
