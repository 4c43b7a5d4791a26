"""The fully convolutional networks: as large as published, and what is peculiar to each."""

from __future__ import annotations

from importlib import import_module

import pytest
import torch
from architectures import experiment
from torch.nn.functional import (
    adaptive_avg_pool2d,
    adaptive_avg_pool3d,
    interpolate,
    max_pool2d,
    max_pool3d,
    max_unpool2d,
    max_unpool3d,
)

from fedmed_common.catalogue import Architecture, Plan
from fedmed_common.catalogue.fully_convolutional import FCN, DeepMedic, HRNet, PSPNet, SegNet
from fedmed_common.models import build_model
from fedmed_common.models.fcn import bilinear_kernel
from fedmed_common.models.pspnet import parts_mean
from fedmed_common.models.segnet import pool, unpool


def count(model: Architecture, dimensions: int, in_channels: int, outputs: int) -> int:
    """Parameters, without memory for them."""
    plan = Plan(
        dimensions=2 if dimensions == 2 else 3,
        in_channels=in_channels,
        outputs=outputs,
        patch=(64,) * dimensions,
    )
    with torch.device("meta"):
        network = import_module(model.module).build(model, plan)
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize("variant", ["32s", "16s", "8s"])
def test_fcn_has_the_published_size(variant: str) -> None:
    """134 M (table 1, FCN-VGG16, 21 classes)."""
    model = FCN.model_validate({"variant": variant, "norm": "batch"})
    assert count(model, 2, 3, 21) == pytest.approx(134e6, rel=0.01)


def test_segnet_has_the_published_size() -> None:
    """29.45 M (table 6: the model of 11 classes)."""
    assert count(SegNet(norm="batch"), 2, 3, 11) == pytest.approx(29.45e6, rel=0.01)


def test_pspnet_has_the_published_size() -> None:
    """On ResNet-101 with ADE20K's 150 classes 68.1 M: Xie et al. 2021, 'SegFormer', table 2. The paper gives none."""
    model = PSPNet(variant="resnet101", norm="batch")
    assert count(model, 2, 3, 150) == pytest.approx(68.1e6, rel=0.01)


def test_pspnet_on_resnet50_is_smaller_by_seventeen_bottlenecks() -> None:
    """Of the third stage: 1024 to 256, 256 to 256 by 3x3, 256 to 1024, and their norms."""
    bottleneck = 2 * 1024 * 256 + 9 * 256 * 256 + 2 * (256 + 256 + 1024)
    sizes = [count(PSPNet(variant=name, norm="batch"), 2, 3, 19) for name in ("resnet50", "resnet101")]
    assert sizes[1] - sizes[0] == 17 * bottleneck


@pytest.mark.parametrize(("variant", "published"), [("w18", 9.64e6), ("w48", 65.9e6)])
def test_hrnet_has_the_published_size(variant: str, published: float) -> None:
    """W48: table 3 of the paper (Cityscapes, 19 classes). W18: MMSegmentation's fcn_hr18, the same network."""
    model = HRNet.model_validate({"variant": variant, "norm": "batch"})
    assert count(model, 2, 3, 19) == pytest.approx(published, rel=0.01)


def test_deepmedic_has_the_published_layers() -> None:
    """Figure 5: eight 3x3x3 convolutions in each pathway, two layers of 150 and the classes. The paper gives no total."""
    steps = 30 * 30 + 30 * 40 + 3 * 40 * 40 + 40 * 50 + 50 * 50
    features = 2 * (30 + 30 + 40 * 4 + 50 * 2) + 150 * 2
    pathways = 2 * 27 * (2 * 30 + steps)
    joined = 100 * 150 + 150 * 150 + 150 * 5 + 5
    per_feature = 2 + 1  # a norm's scale and shift, a PReLU's slope
    assert count(DeepMedic(norm="batch"), 3, 2, 5) == pathways + joined + per_feature * features


def test_width_makes_networks_smaller() -> None:
    for kind in (FCN, SegNet, PSPNet, HRNet, DeepMedic):
        whole, half, quarter = (count(kind(width=width), 2, 1, 3) for width in (1.0, 0.5, 0.25))
        assert quarter < half / 3 < whole / 9


@pytest.mark.parametrize("factor", [2, 8, 16, 32])
def test_fcns_kernel_interpolates_linearly(factor: int) -> None:
    """As torch does, but at the border, where its transposed convolution adds zeros from outside."""
    maps = torch.randn(1, 1, 5, 6, dtype=torch.float64)
    kernel = bilinear_kernel(factor).double()[None, None]
    ours = torch.conv_transpose2d(maps, kernel, stride=factor, padding=factor // 2)
    theirs = interpolate(maps, scale_factor=factor, mode="bilinear", align_corners=False)
    inner = (..., slice(factor, -factor), slice(factor, -factor))
    assert ours.shape == theirs.shape
    assert torch.allclose(ours[inner], theirs[inner])


def test_fcn_8s_adds_the_scores_of_three_pools() -> None:
    """Take one away, and the logits are others."""
    network = build_model(experiment("fcn", 2)).eval()
    image = torch.randn(1, 1, 64, 96)
    scores = network.get_submodule("scores")
    assert len(list(scores.children())) == 3
    with torch.no_grad():
        whole = network(image)
        for place in ("0", "1", "2"):
            kept = {name: value.clone() for name, value in scores.state_dict().items()}
            scores.get_submodule(place).get_parameter("weight").zero_()
            assert not torch.equal(network(image), whole)
            scores.load_state_dict(kept)
        assert torch.equal(network(image), whole)


def test_fcns_last_step_is_learned_only_where_wanted() -> None:
    fixed, learned = (
        dict(build_model(experiment("fcn", 2, learned_upsampling=wanted)).named_parameters())
        for wanted in (False, True)
    )
    assert set(learned) - set(fixed) == {"last.weight"}
    assert not [name for name in build_model(experiment("fcn", 2)).state_dict() if name.startswith("last")]


def test_segnet_puts_values_back_where_the_pools_found_them() -> None:
    for shape, take, put in (
        ((2, 3, 8, 12), max_pool2d, max_unpool2d),
        ((2, 3, 4, 8, 6), max_pool3d, max_unpool3d),
    ):
        maps = torch.randn(shape)
        largest, places = pool(maps)
        wanted, indices = take(maps, 2, return_indices=True)
        assert torch.equal(largest, wanted)
        other = torch.randn_like(largest)
        assert torch.equal(unpool(other, places), put(other, indices, 2))


@pytest.mark.parametrize("parts", [1, 2, 3, 6])
def test_pspnets_means_are_adaptive_average_pooling(parts: int) -> None:
    flat, solid = (
        torch.randn(2, 3, 7, 12, dtype=torch.float64),
        torch.randn(1, 2, 4, 7, 6, dtype=torch.float64),
    )
    assert torch.allclose(parts_mean(flat, parts), adaptive_avg_pool2d(flat, parts))
    assert torch.allclose(parts_mean(solid, parts), adaptive_avg_pool3d(solid, parts))


def test_pspnet_has_a_second_output_only_while_it_trains() -> None:
    asked = experiment("pspnet", 2)
    image = torch.randn(2, 1, *asked.data.patch)
    network = build_model(asked).train()
    assert [tuple(logits.shape) for logits in network(image)] == [(2, 3, *asked.data.patch)] * 2
    assert network.output_weights == (1.0, 0.4)
    alone = build_model(experiment("pspnet", 2, auxiliary=0.0)).train()
    assert alone(image).shape == (2, 3, *asked.data.patch)
    assert not hasattr(alone, "output_weights")


def test_deepmedics_coarse_pathway_sees_three_times_as_far() -> None:
    """Two 3x3 convolutions per pathway reach 2 voxels, and 2 coarse ones: 6 and the rest of the one they lie in."""
    asked = experiment("deepmedic", 2, norm="batch", width=1.0)
    network = build_model(asked).eval()
    image = torch.zeros(1, 1, 33, 33, requires_grad=True)
    network(image)[0, :, 16, 16].sum().backward()
    assert image.grad is not None
    reached = image.grad[0, 0].nonzero()
    assert reached.min(dim=0).values.tolist() == [9, 9]
    assert reached.max(dim=0).values.tolist() == [23, 23]
