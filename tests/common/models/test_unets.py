"""The classic U-Nets: as large as published, and what is peculiar to each."""

from __future__ import annotations

from importlib import import_module
from itertools import pairwise

import pytest
import torch
from architectures import experiment
from monai.networks.nets import VNet as MonaiVNet
from torch import nn

from fedmed_common.catalogue import Architecture, Plan
from fedmed_common.catalogue.unets import (
    AttentionUNet,
    InceptionUNet,
    R2UNet,
    ResidualUNet,
    UNet3D,
    UNet2015,
    VNet,
)
from fedmed_common.models import build_model

PUBLISHED_2D = (64, 128, 256, 512, 1024)


def build(model: Architecture, dimensions: int, in_channels: int, outputs: int) -> nn.Module:
    """Without memory: its parameters are counted, not used."""
    plan = Plan(
        dimensions=2 if dimensions == 2 else 3,
        in_channels=in_channels,
        outputs=outputs,
        patch=(64,) * dimensions,
    )
    with torch.device("meta"):
        network: nn.Module = import_module(model.module).build(model, plan)
    return network


def count(network: nn.Module, kind: type[nn.Module] | tuple[type[nn.Module], ...] = nn.Module) -> int:
    """Parameters of the layers of this kind."""
    found = {
        id(parameter): parameter.numel()
        for layer in network.modules()
        if isinstance(layer, kind)
        for parameter in layer.parameters()
    }
    return sum(found.values())


def test_unet_2015_has_the_published_size() -> None:
    """31,030,658 with a bias for each convolution, as figure 1 gives it: nine levels of two, four up-convolutions, one 1x1."""
    sizes = PUBLISHED_2D
    down = sum(9 * a * b + b + 9 * b * b + b for a, b in pairwise((1, *sizes)))
    up = sum(4 * a * b + b + 9 * a * b + b + 9 * b * b + b for a, b in pairwise(reversed(sizes)))
    published = down + up + 64 * 2 + 2
    assert published == 31_030_658
    network = build(UNet2015(channels=PUBLISHED_2D, norm="batch"), 2, 1, 2)
    features = 2 * (2 * sum(sizes) - sizes[-1])
    assert count(network) == published + features  # a norm's scale and shift in place of a bias


def test_unet3d_has_the_published_size() -> None:
    """'The proposed architecture has 19069955 parameters in total' (section 2): a bias where ours has a norm's shift."""
    network = build(UNet3D(channels=(64, 128, 256, 512), norm="batch"), 3, 3, 3)
    assert count(network) - count(network, nn.BatchNorm3d) // 2 == 19_069_955


def test_vnet_has_the_published_stages() -> None:
    """Figure 2: stages of 1, 2, 3, 3, 3 and 3, 3, 2, 1 convolutions of 5x5x5; the paper gives no number of parameters."""
    stages = (
        16 + 2 * 32**2 + 3 * 64**2 + 3 * 128**2 + 3 * 256**2 + 3 * 256**2 + 3 * 128**2 + 2 * 64**2 + 32**2
    )
    down = 16 * 32 + 32 * 64 + 64 * 128 + 128 * 256
    up = 256 * 128 + 256 * 64 + 128 * 32 + 64 * 16
    network = build(VNet(norm="batch"), 3, 1, 2)
    rest = count(network, (nn.BatchNorm3d, nn.PReLU)) + 32 * 2 + 2
    assert count(network) == 125 * stages + 8 * (down + up) + rest


def test_vnet_is_as_large_as_monais() -> None:
    """MONAI's stages are 1, 1, 2, 3, 2 and 2, 2, 1, 1; it counts 45.6 M, as the implementation that it follows."""
    with torch.device("meta"):
        theirs = MonaiVNet(spatial_dims=3, in_channels=1, out_channels=2)
    model = VNet(norm="batch", convolutions=(1, 1, 2, 3, 2), convolutions_up=(1, 1, 2, 2), activation="elu")
    assert count(theirs) == pytest.approx(45.6e6, rel=0.01)
    assert count(build(model, 3, 1, 2)) == pytest.approx(count(theirs), rel=0.01)


def test_vnet_refuses_lists_of_different_lengths() -> None:
    with pytest.raises(ValueError, match=r"convolutions needs 3 numbers and model\.convolutions_up 2"):
        VNet(channels=(4, 6, 8), convolutions=(1, 2), convolutions_up=(1, 2))


def test_residual_unet_has_the_published_size_but_for_its_projections() -> None:
    """Section III-D: 7.8 M. The projections of the identities are not among them."""
    network = build(ResidualUNet(norm="batch"), 2, 3, 1)
    projections = sum(count(layer.shortcut) for layer in network.modules() if hasattr(layer, "shortcut"))
    assert count(network) - projections == pytest.approx(7.8e6, rel=0.01)


def test_attention_unet_has_the_published_size() -> None:
    """Table 1: 6.40 M with gates and 5.88 M without. The 1x1 convolution of the signal is in the code, not in that figure."""
    network = build(AttentionUNet(gates=2, norm="batch"), 3, 1, 2)
    gates, signal = (count(network.get_submodule(name)) for name in ("gates", "signal"))
    assert count(network) - gates - signal == pytest.approx(5.88e6, rel=0.01)
    assert count(network) - signal == pytest.approx(6.40e6, rel=0.01)


def test_inception_unet_has_the_size_of_its_blocks() -> None:
    """No figure is published. A block from a to b features: (1 + 9 + 25 + 1) a b, and 4 b b to join; two norm weights each."""

    def block(a: int, b: int) -> int:
        return 36 * a * b + 4 * b * b + 2 * 5 * b

    sizes = (16, 32, 64, 128, 256)
    down = sum(block(a, b) for a, b in pairwise((3, *sizes)))
    up = sum(4 * a * b + b + block(2 * b, b) for a, b in pairwise(reversed(sizes)))
    network = build(InceptionUNet(norm="batch"), 2, 3, 1)
    assert count(network) == down + up + 16 + 1


def test_r2unet_has_the_size_of_the_implementation_most_in_use() -> None:
    """39.09 M: github.com/LeeJunHyun/Image_Segmentation, R2U_Net(3, 1, t=2), which repeats one convolution as ours does."""
    assert count(build(R2UNet(channels=PUBLISHED_2D, norm="batch"), 2, 3, 1)) == pytest.approx(
        39.09e6, rel=0.01
    )


def test_r2unet_steps_add_no_weights() -> None:
    sizes = {count(build(R2UNet(channels=(4, 8), steps=steps), 2, 1, 2)) for steps in (1, 2, 5)}
    assert len(sizes) == 1


def test_an_open_gate_passes_a_skip_connection_on_and_a_shut_one_nothing() -> None:
    network = build_model(experiment("attention_unet", 2)).eval()
    gate = network.get_submodule("gates.0.gates.0")
    skip, signal = torch.randn(2, 6, 8, 12), torch.randn(2, 8, 4, 6)
    psi = gate.get_submodule("psi")
    with torch.no_grad():
        assert ((gate.weights(skip, signal) > 0) & (gate.weights(skip, signal) < 1)).all()
        psi.weight.zero_()
        psi.bias.fill_(100.0)
        assert torch.equal(gate(skip, signal), gate.transform(skip))
        psi.bias.fill_(-200.0)
        assert torch.equal(gate(skip, signal), gate.transform(torch.zeros_like(skip)))


def test_vnet_adds_what_a_stage_began_with() -> None:
    """With the norms' scale at zero a stage's convolutions give nothing: what is left is its start, activated."""
    network = build_model(experiment("vnet", 3)).eval()
    stage = network.get_submodule("left.1")
    norms = [layer for layer in stage.modules() if isinstance(layer, nn.InstanceNorm3d)]
    start = torch.randn(1, 6, 4, 4, 8)
    with torch.no_grad():
        norms[-1].weight.zero_()
        assert torch.equal(stage(start, start), stage.activation(start))
