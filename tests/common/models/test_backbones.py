"""Feature extractors: published sizes and names, and dilation in place of stride."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import pytest
import torch
from torch import nn

from fedmed_common.models.backbones.aligned_xception import AlignedXception
from fedmed_common.models.backbones.mobilenet_v2 import MobileNetV2
from fedmed_common.models.backbones.resnet import Depth, OutputStride, ResNet
from fedmed_common.models.backbones.vgg16 import DilatedVGG16
from fedmed_common.models.backbones.xception import Xception

NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def size(*parts: nn.Module) -> int:
    return sum(parameter.numel() for part in parts for parameter in part.parameters())


@pytest.mark.parametrize(
    ("depth", "published"),
    [(18, 11_689_512), (34, 21_797_672), (50, 25_557_032), (101, 44_549_160), (152, 60_192_808)],
)
def test_resnet_has_the_published_number_of_parameters(depth: Depth, published: int) -> None:
    """torchvision's documented figures for ImageNet, its linear layer to 1000 classes included."""
    with torch.device("meta"):
        network = ResNet(depth, 3, 2, "batch")
        assert size(network, nn.Linear(network.channels[-1], 1000)) == published


def test_xception_has_the_published_number_of_parameters() -> None:
    """Chollet 2017, table 3: 22,855,952."""
    with torch.device("meta"):
        assert size(Xception(3, 2, "batch"), nn.Linear(2048, 1000)) == 22_855_952


def test_mobilenet_v2_has_the_published_number_of_parameters() -> None:
    """torchvision's documented figure for ImageNet, 3,504,872; the paper's table 4 says 3.4 M."""
    with torch.device("meta"):
        last = nn.Sequential(nn.Conv2d(320, 1280, 1, bias=False), nn.BatchNorm2d(1280), nn.Linear(1280, 1000))
        assert size(MobileNetV2(3, 2, "batch"), last) == 3_504_872


def test_vgg16_has_the_published_number_of_parameters() -> None:
    """torchvision's vgg16, 138,357,544, less its three linear layers."""
    linear = (512 * 7 * 7 + 1) * 4096 + (4096 + 1) * 4096 + (4096 + 1) * 1000
    with torch.device("meta"):
        assert size(DilatedVGG16(3, 2, None)) == 138_357_544 - linear


def test_names_are_the_published_ones() -> None:
    resnet = list(ResNet(50, 3, 2, "batch", width=0.0625).state_dict())
    first = ["conv1.weight", *(f"bn1.{name}" for name in NORM)]
    for place in (1, 2, 3):
        first += [f"layer1.0.conv{place}.weight", *(f"layer1.0.bn{place}.{name}" for name in NORM)]
    first += ["layer1.0.downsample.0.weight", *(f"layer1.0.downsample.1.{name}" for name in NORM)]
    assert resnet[: len(first)] == first
    assert resnet[-6] == "layer4.2.conv3.weight"
    xception = Xception(3, 2, "batch", width=0.0625).state_dict()
    assert {"block1.rep.0.pointwise.weight", "block1.skipbn.weight", "block12.rep.5.running_var"} <= set(
        xception
    )
    mobilenet = MobileNetV2(3, 2, "batch", width=0.25).state_dict()
    assert {"features.0.1.bias", "features.1.conv.1.weight", "features.17.conv.3.running_var"} <= set(
        mobilenet
    )
    assert "features.28.weight" in DilatedVGG16(3, 2, None, width=0.0625).state_dict()
    assert "features.41.running_mean" in DilatedVGG16(3, 2, "batch", width=0.0625).state_dict()


Make = Callable[[int, OutputStride], nn.Module]
DILATABLE: dict[str, Make] = {
    "resnet18": lambda axes, stride: ResNet(18, 2, axes, "batch", width=0.0625, output_stride=stride),
    "resnet50": lambda axes, stride: ResNet(50, 2, axes, "batch", width=0.0625, output_stride=stride),
    "xception65": lambda axes, stride: AlignedXception(2, axes, "batch", width=0.01, output_stride=stride),
    "mobilenet_v2": lambda axes, stride: MobileNetV2(2, axes, "batch", width=0.125, output_stride=stride),
}


@pytest.mark.parametrize(
    ("name", "dimensions", "output_stride"),
    [case for case in product(DILATABLE, (2, 3), (8, 16)) if case[:2] != ("xception65", 3)],
)
def test_dilation_computes_what_stride_did_and_the_places_between(
    name: str, dimensions: int, output_stride: OutputStride
) -> None:
    torch.manual_seed(0)
    strided = DILATABLE[name](dimensions, 32).eval().double()
    dilated = DILATABLE[name](dimensions, output_stride).eval().double()
    dilated.load_state_dict(strided.state_dict())
    image = torch.randn(1, 2, *(65, 40, 20)[:dimensions], dtype=torch.float64)
    assert strided.strides == (2, 4, 8, 16, 32)
    assert dilated.strides == tuple(min(stride, output_stride) for stride in (2, 4, 8, 16, 32))
    with torch.no_grad():
        pairs = list(zip(strided(image), dilated(image), strict=True))
    for (coarse, fine), stride, kept, channels in zip(
        pairs, strided.strides, dilated.strides, strided.channels, strict=True
    ):
        assert fine.shape[1:] == (channels, *(-(-extent // kept) for extent in image.shape[2:]))
        picked = fine[(..., *[slice(None, None, stride // kept)] * dimensions)]
        torch.testing.assert_close(picked, coarse, rtol=1e-9, atol=1e-9)


def test_xceptions_maps_have_the_strides_that_it_names() -> None:
    network = Xception(1, 2, "batch", width=0.0625).eval()
    maps = network(torch.zeros(1, 1, 67, 33))
    assert [tuple(each.shape) for each in maps] == [
        (1, channels, -(-67 // stride), -(-33 // stride))
        for channels, stride in zip(network.channels, network.strides, strict=True)
    ]


def test_the_multi_grid_multiplies_the_last_stages_dilation() -> None:
    """Chen et al. 2017, section 3.2.1: at output stride 16 a multi-grid of 1, 2, 4 gives 2, 4, 8."""
    network = ResNet(50, 1, 2, "batch", width=0.0625, output_stride=16, multi_grid=(1, 2, 4))
    assert [block.conv2.dilation for block in network.layer4] == [(2, 2), (4, 4), (8, 8)]
    assert {block.conv2.dilation for block in network.layer3} == {(1, 1)}
