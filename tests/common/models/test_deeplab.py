"""The DeepLab family: published sizes, and what is peculiar to each."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from architectures import experiment
from pydantic import ValidationError
from torch import nn

from fedmed_common.catalogue import ARCHITECTURES, Plan
from fedmed_common.config import Experiment
from fedmed_common.models import build_model, deeplab_v1, deeplab_v2, deeplab_v3, deeplab_v3plus
from fedmed_common.models.backbones.resnet import ResNet
from fedmed_common.models.parts.aspp import Pyramid

BUILD = {
    "deeplab_v1": deeplab_v1.build,
    "deeplab_v2": deeplab_v2.build,
    "deeplab_v3": deeplab_v3.build,
    "deeplab_v3plus": deeplab_v3plus.build,
}
VOC = 21
VGG16 = 14_714_688
"""Parameters of its thirteen convolutions."""
RESNET50, RESNET101, MOBILENET_V2 = 23_508_032, 42_500_160, 1_811_712
"""Without what only classification has: 1000 times 2048 and a bias each; 1280 times 320, its norm, 1000 times 1280 and a bias."""


def whole(name: str, outputs: int, **settings: Any) -> nn.Module:
    model = ARCHITECTURES[name](norm="batch", **settings)
    with torch.device("meta"):
        return BUILD[name](model, Plan(dimensions=2, in_channels=3, outputs=outputs, patch=(513, 513)))


def size(name: str, outputs: int, **settings: Any) -> int:
    return sum(parameter.numel() for parameter in whole(name, outputs, **settings).parameters())


def test_v1_has_the_published_size() -> None:
    """Chen et al. 2015, table 2: DeepLab-CRF-LargeFOV has 20.5 million."""
    own = (512 * 9 + 1) * 1024 + (1024 + 1) * 1024 + (1024 + 1) * VOC
    assert size("deeplab_v1", VOC, norms=False) == VGG16 + own
    assert VGG16 + own == pytest.approx(20.5e6, rel=0.01)


def test_v2_has_the_size_of_the_papers_layers() -> None:
    """Section 4.1.2 and figure 7; the paper gives no figure for either."""
    assert size("deeplab_v2", VOC) == RESNET101 + 4 * (2048 * 9 + 1) * VOC
    branch = (512 * 9 + 1) * 1024 + (1024 + 1) * 1024 + (1024 + 1) * VOC
    assert size("deeplab_v2", VOC, backbone="vgg16", norms=False) == VGG16 + 4 * branch


@pytest.mark.parametrize(("backbone", "published"), [("resnet50", 42_004_074), ("resnet101", 60_996_202)])
def test_v3_has_the_published_size(backbone: str, published: int) -> None:
    """torchvision's documented figures, less its auxiliary head and its 3x3 convolution before the logits."""
    auxiliary = 1024 * 9 * 256 + 2 * 256 + (256 + 1) * VOC
    further = 256 * 9 * 256 + 2 * 256
    assert size("deeplab_v3", VOC, backbone=backbone) == published - auxiliary - further


def test_v3plus_with_xception_has_the_published_size() -> None:
    """The Keras network that takes the authors' weights (bonlime's keras-deeplab-v3-plus) has 41,258,213 numbers.

    Those count running statistics, of which the group norm of the image's mean has none.
    """
    network = whole("deeplab_v3plus", VOC, backbone="xception")
    statistics = sum(buffer.numel() for buffer in network.buffers() if buffer.ndim)
    assert size("deeplab_v3plus", VOC, backbone="xception") + statistics == 41_258_213 - 2 * 256


@pytest.mark.parametrize(
    ("backbone", "trunk", "quarter", "coarsest"),
    [
        ("resnet50", RESNET50, 256, 2048),
        ("resnet101", RESNET101, 256, 2048),
        ("mobilenet_v2", MOBILENET_V2, 24, 320),
    ],
)
@pytest.mark.parametrize("separable", [False, True])
def test_v3plus_has_the_size_of_the_papers_layers(
    backbone: str, trunk: int, quarter: int, coarsest: int, separable: bool
) -> None:
    """Sections 3.1 and 4.1; the paper gives no figure for these."""

    def normed(entering: int, leaving: int, kernel: int) -> int:
        if separable and kernel == 3:
            return entering * 9 + 2 * entering + normed(entering, leaving, 1)
        return entering * kernel**2 * leaving + 2 * leaving

    pyramid = 2 * normed(coarsest, 256, 1) + 3 * normed(coarsest, 256, 3) + normed(5 * 256, 256, 1)
    decoder = normed(quarter, 48, 1) + normed(256 + 48, 256, 3) + normed(256, 256, 3)
    head = (256 + 1) * VOC
    found = size("deeplab_v3plus", VOC, backbone=backbone, separable=separable)
    assert found == trunk + pyramid + decoder + head


@pytest.mark.parametrize(
    ("name", "backbone"),
    [
        ("deeplab_v2", "vgg16"),
        ("deeplab_v3", "resnet50"),
        ("deeplab_v3plus", "resnet50"),
        ("deeplab_v3plus", "xception"),
        ("deeplab_v3plus", "mobilenet_v2"),
    ],
)
def test_each_backbone_gives_logits_of_any_size(name: str, backbone: str) -> None:
    network = build_model(experiment(name, 2, backbone=backbone)).eval()
    with torch.no_grad():
        logits = network(torch.randn(1, 1, 37, 42))
    assert logits.shape == (1, 3, 37, 42)
    assert logits.isfinite().all()


@pytest.mark.parametrize("name", ["deeplab_v3", "deeplab_v3plus"])
def test_rates_double_at_output_stride_8(name: str) -> None:
    """Chen et al. 2017, section 3.3."""
    for output_stride, wanted in ((16, [6, 12, 18]), (8, [12, 24, 36])):
        network = build_model(experiment(name, 2, output_stride=output_stride, rates=(6, 12, 18)))
        pyramid = network.get_submodule("pyramid")
        assert isinstance(pyramid, Pyramid)
        assert [branch[0].dilation[0] for branch in pyramid.atrous] == wanted


def test_v2_sums_its_branches() -> None:
    network = build_model(experiment("deeplab_v2", 2)).eval().double()
    image = torch.randn(1, 1, 32, 24, dtype=torch.float64)
    backbone, branches = network.get_submodule("backbone"), network.get_submodule("branches")
    assert isinstance(backbone, ResNet)
    assert isinstance(branches, nn.ModuleList)
    with torch.no_grad():
        maps = backbone(image)[-1]
        coarse = sum(branch(maps) for branch in branches)
        wanted = nn.functional.interpolate(coarse, size=image.shape[2:], mode="bilinear")
        torch.testing.assert_close(network(image), wanted)


def test_v3_sees_the_whole_image_in_every_voxel() -> None:
    """Dilations of 1 reach less far: it is the mean that does."""
    pyramid = Pyramid(2, "batch", 4, 8, (1,)).eval().double()
    maps = torch.randn(1, 4, 24, 24, dtype=torch.float64)
    other = maps.clone()
    other[..., 20:, 20:] += 3.0
    with torch.no_grad():
        before, after = pyramid(maps), pyramid(other)
        nn.init.zeros_(pyramid.image[0].weight)
        local_before, local_after = pyramid(maps), pyramid(other)
    assert not torch.equal(before[..., 0, 0], after[..., 0, 0])
    assert torch.equal(local_before[..., 0, 0], local_after[..., 0, 0])


@pytest.mark.parametrize("name", sorted(BUILD))
def test_a_patch_that_shrinks_to_one_voxel_is_refused(name: str) -> None:
    settings = experiment(name, 2).model_dump(mode="json")
    settings["data"]["patch"] = [8, 8]
    with pytest.raises(
        ValidationError, match=r"data\.patch \[8, 8\]: at output stride 8 it shrinks to one voxel"
    ):
        Experiment.model_validate(settings)
    settings["data"]["patch"] = [8, 9]
    network = build_model(Experiment.model_validate(settings))
    assert network(torch.randn(1, 1, 8, 9)).isfinite().all()
