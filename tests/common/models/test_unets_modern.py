"""The U-Nets since 2018: the published numbers of parameters, and what is peculiar to each."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import pytest
import torch
from architectures import experiment
from pydantic import ValidationError

from fedmed_common.catalogue.base import Architecture, Plan
from fedmed_common.catalogue.stages import plan_stages
from fedmed_common.catalogue.unets_modern import DenseUNet, DynUNet, MedNeXt, UNetPlusPlus, UNeXt
from fedmed_common.config import Experiment
from fedmed_common.models import build_model
from fedmed_common.models.unetplusplus import Nested, pruned
from fedmed_common.models.unext import shifted


def plan(dimensions: Any, channels: int, outputs: int, *patch: int) -> Plan:
    return Plan(dimensions=dimensions, in_channels=channels, outputs=outputs, patch=patch)


PUBLISHED: dict[str, tuple[Architecture, Plan, float]] = {
    # Jégou et al. 2017, table 3: FC-DenseNet103, CamVid's 11 classes, 9.4 M.
    "FC-DenseNet103": (DenseUNet(norm="batch"), plan(2, 3, 11, 224, 224), 9.4e6),
    # Zhou et al. 2020, table IV: 9.04 M, with the 2D sizes 32 to 512; one class.
    "U-Net++": (UNetPlusPlus(norm="batch"), plan(2, 3, 1, 96, 96), 9.04e6),
    # Valanarasu and Patel 2022, table 1: 1.47 M; one class.
    "UNeXt": (UNeXt(norm="batch"), plan(2, 3, 1, 512, 512), 1.47e6),
    # Roy et al. 2023, table 2: nnU-Net 31.2 M, BTCV's 13 organs, one channel.
    "nnU-Net": (DynUNet(), plan(3, 1, 14, 128, 128, 128), 31.2e6),
    # Roy et al. 2023, table 2, kernel 3; and kernel 5.
    "MedNeXt-S": (MedNeXt(variant="S"), plan(3, 1, 14, 128, 128, 128), 5.6e6),
    "MedNeXt-B": (MedNeXt(variant="B"), plan(3, 1, 14, 128, 128, 128), 10.5e6),
    "MedNeXt-M": (MedNeXt(variant="M"), plan(3, 1, 14, 128, 128, 128), 17.6e6),
    "MedNeXt-L": (MedNeXt(variant="L"), plan(3, 1, 14, 128, 128, 128), 61.8e6),
    "MedNeXt-L, kernel 5": (MedNeXt(variant="L", kernel=5), plan(3, 1, 14, 128, 128, 128), 63.0e6),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_as_many_parameters_as_published(name: str) -> None:
    settings, asked, published = PUBLISHED[name]
    settings.check(asked)
    with torch.device("meta"):
        network = import_module(settings.module).build(settings, asked)
    count = sum(parameter.numel() for parameter in network.parameters())
    assert count == pytest.approx(published, rel=0.01)


def image(asked: Experiment) -> torch.Tensor:
    rng = torch.Generator().manual_seed(1)
    return torch.randn(2, asked.data.channels, *asked.data.patch, generator=rng)


@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_a_pruned_unetplusplus_is_its_branch(dimensions: int, norm: str) -> None:
    asked = experiment("unetplusplus", dimensions, norm=norm)
    network = build_model(asked)
    assert isinstance(network, Nested)
    network.train()(image(asked))
    network.eval()
    with torch.no_grad():
        branches = network.branches(image(asked))
        for depth, branch in zip((2, 1), branches, strict=True):
            small = pruned(network, depth)
            assert torch.equal(small(image(asked)), branch)
    assert sum(1 for _ in small.parameters()) < sum(1 for _ in network.parameters())
    assert build_model(experiment("unetplusplus", dimensions, norm=norm, prune=1)).depth == small.depth


def test_a_branch_without_a_head_cannot_be_pruned_to() -> None:
    network = build_model(experiment("unetplusplus", 2, deep_supervision=False))
    assert isinstance(network, Nested)
    with pytest.raises(ValueError, match=r"no branch 1: this network has 2; train it with model\.deep_super"):
        pruned(network, 1)
    with pytest.raises(ValidationError, match=r"model\.prune = 3: 3 levels have branches 1 to 2"):
        experiment("unetplusplus", 2, prune=3)


@pytest.mark.parametrize(
    ("name", "dimensions", "resolutions"),
    [
        ("unetplusplus", 2, [1, 1]),
        ("dynunet", 2, [1, 2]),
        ("mednext", 3, [1, 2, 4, 8, 16]),
    ],
)
def test_deep_supervision_gives_the_main_output_first(
    name: str, dimensions: int, resolutions: list[int]
) -> None:
    asked = experiment(name, dimensions)
    network = build_model(asked).train()
    outputs = network(image(asked))
    sizes = [tuple(size // factor for size in asked.data.patch) for factor in resolutions]
    assert [tuple(output.shape[2:]) for output in outputs] == sizes
    assert torch.equal(network.eval()(image(asked)), outputs[0])
    plain = build_model(experiment(name, dimensions, deep_supervision=False)).train()
    assert isinstance(plain(image(asked)), torch.Tensor)


def test_stages_of_cubes_are_those_of_nnunet() -> None:
    """Patch 128 at 1 mm, as for BraTS: five halvings, all kernels 3 (Isensee et al. 2021, supplementary note 6)."""
    kernels, strides = plan_stages((128, 128, 128), (1.0, 1.0, 1.0))
    assert kernels == ((3, 3, 3),) * 6
    assert strides == ((1, 1, 1), *((2, 2, 2),) * 5)
    assert plan_stages((128, 128, 128), None) == (kernels, strides)


def test_stages_of_thick_slices_are_those_of_nnunet() -> None:
    """The prostate of the decathlon: 3.6 mm slices of 0.62 mm pixels, patch 20 x 320 x 256 there, z last here."""
    kernels, strides = plan_stages((320, 256, 20), (0.62, 0.62, 3.6))
    assert strides == ((1, 1, 1), (2, 2, 1), (2, 2, 1), (2, 2, 2), (2, 2, 2), (2, 2, 1), (2, 2, 1))
    assert kernels == ((3, 3, 1), (3, 3, 1), *((3, 3, 3),) * 5)


def test_dynunet_is_built_for_the_spacing_or_as_told() -> None:
    settings = experiment("dynunet", 3).model_dump(mode="json")
    settings["data"] |= {"patch": [32, 32, 8], "spacing_mm": [1.0, 1.0, 5.0]}
    network: Any = build_model(Experiment.model_validate(settings))
    assert network.input_block.conv1.conv.kernel_size == (3, 3, 1)
    assert network.downsamples[0].conv1.conv.stride == (2, 2, 1)
    settings["model"] |= {"kernels": [[3, 3, 3]] * 3, "strides": [[1, 1, 1], [2, 2, 2], [1, 2, 2]]}
    told: Any = build_model(Experiment.model_validate(settings))
    assert told.bottleneck.conv1.conv.stride == (1, 2, 2)


@pytest.mark.parametrize(
    ("model", "patch", "message"),
    [
        ({}, [30, 32], r"data\.patch \[30, 32\]: 30 is not a multiple of 8, .* its axes need multiples of \[8, 8\]"),
        ({}, [12, 12], r"its longest axis is less than 16"),
        ({"kernels": [[3, 3]] * 3}, [32, 32], r"give model\.kernels and model\.strides together"),
        ({"kernels": [[3, 2]] * 3, "strides": [[1, 1]] * 3}, [32, 32], r"model\.kernels must be odd"),
        ({"kernels": [[3, 3]] * 3, "strides": [[2, 1]] * 3}, [32, 32], r"model\.strides must begin with 1"),
        ({"kernels": [[3] * 3] * 3, "strides": [[1] * 3] * 3}, [32, 32], r"need 2 numbers a level"),
        ({"kernels": [[3, 3]] * 3, "strides": [[1, 1], [2, 2], [2, 2]]}, [4, 4], r"to one voxel"),
    ],
)  # fmt: skip
def test_dynunet_refuses_what_cannot_be_built(model: dict[str, Any], patch: list[int], message: str) -> None:
    settings = experiment("dynunet", 2).model_dump(mode="json")
    settings["data"]["patch"] = patch
    settings["model"] |= model
    with pytest.raises(ValidationError, match=message):
        Experiment.model_validate(settings)


def test_mednext_expands_on_the_way_down_as_the_level_below() -> None:
    """The authors' code: ``down_2`` of size L has ratio 8, that of the level that it leads to, not 4."""
    with torch.device("meta"):
        settings = MedNeXt(variant="L")
        network: Any = import_module(settings.module).build(settings, plan(3, 1, 2, 32, 32, 32))
    ratios = [block.conv2.out_channels // block.conv2.in_channels for block in network.down_blocks]
    assert ratios == [4, 8, 8, 8]


def test_unext_shifts_each_fifth_by_its_own_step() -> None:
    """As the authors' code: padded with zeros, rolled, cut; seen from voxel 4 of 9, feature k of 5 comes from ``4 - (k - 2)``."""
    maps = torch.arange(9.0).reshape(1, 1, 9, 1).expand(1, 5, 9, 9)
    moved = shifted(maps, axis=2)
    assert moved[0, :, 4, 4].tolist() == [6.0, 5.0, 4.0, 3.0, 2.0]
    assert moved[0, 0, 7:, 4].tolist() == [0.0, 0.0]
    assert torch.equal(shifted(maps.transpose(2, 3), axis=3), moved.transpose(2, 3))
    padded = torch.nn.functional.pad(maps, (2, 2, 2, 2))
    rolled = [torch.roll(part, step, 2) for part, step in zip(padded.chunk(5, 1), range(-2, 3), strict=True)]
    assert torch.equal(torch.cat(rolled, 1).narrow(2, 2, 9).narrow(3, 2, 9), moved)


def test_dense_unet_hands_up_only_what_its_bottom_made() -> None:
    network: Any = build_model(experiment("dense_unet", 2))
    assert network.grow[0].in_channels == 2 * 3
    assert network.grow[1].in_channels == 2 * 3
    assert network.head.in_channels == (4 + 3) + 2 * 3 + 3
