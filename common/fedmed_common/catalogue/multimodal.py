"""Networks for images of several modalities, of which some may be missing: a channel that is zero everywhere is one that is."""

from __future__ import annotations

from typing import ClassVar, Literal, TypeAlias

from pydantic import Field

from fedmed_common.catalogue.base import Architecture
from fedmed_common.catalogue.composed import SIZES, Channels, Dropout


class _UShaped(Architecture):
    """Levels of U-Net's kind, each half as fine as the one above."""

    dimensions: ClassVar[tuple[int, ...]] = (2, 3)

    channels: Channels = Field(SIZES, min_length=2, max_length=8, description="features per level of each")
    dropout: Dropout = 0.0

    def multiple(self) -> int:
        """A factor of two for each level below the first."""
        return int(2 ** (len(self.channels) - 1))

    def least(self) -> int:
        """Two voxels at the bottom, or its norm has nothing to normalise."""
        return 2 * self.multiple()


class HeMIS(_UShaped):
    """An encoder for each modality; at each level the mean and the variance of what those that are there give, then one
    decoder."""

    module: ClassVar[str] = "fedmed_common.models.hemis"
    title: ClassVar[str] = "HeMIS U-Net: an encoder for each modality, some of which may be missing"
    source: ClassVar[str] = (
        "Havaei et al. 2016, 'HeMIS: hetero-modal image segmentation', MICCAI; at each level of a U-Net as Dorent et al. 2019, "
        "'Hetero-modal variational encoder-decoder for joint modality completion and segmentation', MICCAI"
    )
    head: ClassVar[tuple[str, ...]] = ("head.*",)

    name: Literal["hemis"] = "hemis"
    channels: Channels = Field(
        SIZES,
        min_length=2,
        max_length=8,
        description="features per level of each encoder, and of the decoder",
    )


class LateFusion(_UShaped):
    """A U-Net for each modality; the mean of the probabilities of those that are there."""

    module: ClassVar[str] = "fedmed_common.models.late_fusion"
    title: ClassVar[str] = "A U-Net for each modality, whose decisions are averaged"
    source: ClassVar[str] = (
        "Rokach 2010, 'Ensemble-based classifiers', Artificial Intelligence Review 33, section 3.1 (distribution summation), of "
        "U-Nets (Ronneberger et al. 2015)"
    )
    head: ClassVar[tuple[str, ...]] = ("members.*.head.*",)

    name: Literal["late_fusion"] = "late_fusion"


Multimodal: TypeAlias = HeMIS | LateFusion
