"""ResNet as a feature extractor: published sizes and names, and dilation in place of stride."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fedmed_common.models.backbones.resnet import Depth, ResNet


@pytest.mark.parametrize(
    ("depth", "published"),
    [(18, 11_689_512), (34, 21_797_672), (50, 25_557_032), (101, 44_549_160), (152, 60_192_808)],
)
def test_has_the_published_number_of_parameters(depth: Depth, published: int) -> None:
    """torchvision's documented figures for ImageNet, its linear layer to 1000 classes included."""
    with torch.device("meta"):
        network = ResNet(depth, 3, 2, "batch")
        head = nn.Linear(network.channels[-1], 1000)
    assert sum(part.numel() for part in [*network.parameters(), *head.parameters()]) == published


def test_names_are_the_published_ones() -> None:
    keys = list(ResNet(50, 3, 2, "batch", width=0.0625).state_dict())
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    first = ["conv1.weight", *(f"bn1.{name}" for name in norm)]
    for place in (1, 2, 3):
        first += [f"layer1.0.conv{place}.weight", *(f"layer1.0.bn{place}.{name}" for name in norm)]
    first += ["layer1.0.downsample.0.weight", *(f"layer1.0.downsample.1.{name}" for name in norm)]
    assert keys[: len(first)] == first
    assert keys[-6] == "layer4.2.conv3.weight"
    assert not [key for key in keys if key.startswith("layer1.1.downsample")]


@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("depth", [18, 50])
@pytest.mark.parametrize("output_stride", [8, 16])
def test_dilation_computes_what_stride_did_and_the_places_between(
    depth: Depth, dimensions: int, output_stride: int
) -> None:
    torch.manual_seed(0)
    strided = ResNet(depth, 2, dimensions, "batch", width=0.0625).eval().double()
    dilated = ResNet(depth, 2, dimensions, "batch", width=0.0625, output_stride=output_stride).eval().double()
    dilated.load_state_dict(strided.state_dict())
    image = torch.randn(1, 2, *(65, 40, 33)[:dimensions], dtype=torch.float64)
    assert dilated.strides == tuple(min(stride, output_stride) for stride in strided.strides)
    for coarse, fine, stride, kept in zip(
        strided(image), dilated(image), strided.strides, dilated.strides, strict=True
    ):
        assert fine.shape[2:] == tuple(-(-size // kept) for size in image.shape[2:])
        picked = fine[(..., *[slice(None, None, stride // kept)] * dimensions)]
        torch.testing.assert_close(picked, coarse, rtol=1e-9, atol=1e-9)


def test_the_multi_grid_multiplies_the_last_stages_dilation() -> None:
    """Chen et al. 2017, section 3.2.1: at output stride 16 a multi-grid of 1, 2, 4 gives 2, 4, 8."""
    network = ResNet(50, 1, 2, "batch", width=0.0625, output_stride=16, multi_grid=(1, 2, 4))
    assert [block.conv2.dilation for block in network.layer4] == [(2, 2), (4, 4), (8, 8)]
    assert {block.conv2.dilation for block in network.layer3} == {(1, 1)}
