"""Classifiers have the published number of parameters, and what is peculiar to each."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import pytest
import torch
from architectures import experiment

from fedmed_common.catalogue import ARCHITECTURES, Plan
from fedmed_common.models import build_model
from fedmed_common.models.figures import count
from fedmed_common.models.parts.classifier import GridMean
from fedmed_common.models.parts.drop_path import DropPath

TORCHVISION = "torchvision.models, table of all available classification weights, 'Params'"
PUBLISHED: list[tuple[str, dict[str, Any], int, float, str]] = [
    ("alexnet", {"normalise": False}, 224, 61.1, TORCHVISION),
    ("vgg", {"depth": 11, "normalise": False}, 224, 132.9, TORCHVISION),
    ("vgg", {"depth": 13, "normalise": False}, 224, 133.0, TORCHVISION),
    ("vgg", {"depth": 16, "normalise": False}, 224, 138.4, TORCHVISION),
    ("vgg", {"depth": 19, "normalise": False}, 224, 143.7, TORCHVISION),
    ("vgg", {"depth": 16}, 224, 138.4, f"{TORCHVISION}, with batch norm"),
    ("googlenet", {"auxiliary": False}, 224, 7.0, "Caffe's model zoo, bvlc_googlenet: 6 998 552 with biases for norms"),
    ("inception_v3", {}, 299, 27.2, f"{TORCHVISION}, with the auxiliary classifier"),
    ("inception_v3", {"auxiliary": False}, 299, 23.83, "Szegedy et al. 2016 by torchvision without the auxiliary classifier"),
    ("xception", {}, 299, 22.86, "Chollet 2017, table 3: 22 855 952"),
    ("resnet", {"depth": 18}, 224, 11.7, TORCHVISION),
    ("resnet", {"depth": 34}, 224, 21.8, TORCHVISION),
    ("resnet", {"depth": 50}, 224, 25.6, TORCHVISION),
    ("resnet", {"depth": 101}, 224, 44.5, TORCHVISION),
    ("resnet", {"depth": 152}, 224, 60.2, TORCHVISION),
    ("densenet", {"depth": 121}, 224, 7.98, TORCHVISION),
    ("densenet", {"depth": 169}, 224, 14.15, TORCHVISION),
    ("densenet", {"depth": 201}, 224, 20.01, TORCHVISION),
    ("efficientnet", {"variant": "b0"}, 224, 5.3, "Tan and Le 2019, table 2"),
    ("efficientnet", {"variant": "b1"}, 240, 7.8, "Tan and Le 2019, table 2"),
    ("efficientnet", {"variant": "b2"}, 260, 9.11, f"{TORCHVISION}; the paper rounds to 9.2"),
    ("efficientnet", {"variant": "b3"}, 300, 12.2, f"{TORCHVISION}; the paper rounds to 12"),
    ("efficientnet", {"variant": "b4"}, 380, 19.3, f"{TORCHVISION}; the paper rounds to 19"),
    ("efficientnet", {"variant": "b5"}, 456, 30.4, f"{TORCHVISION}; the paper rounds to 30"),
    ("efficientnet", {"variant": "b6"}, 528, 43.0, "Tan and Le 2019, table 2"),
    ("efficientnet", {"variant": "b7"}, 600, 66.3, f"{TORCHVISION}; the paper rounds to 66"),
    ("efficientnet", {"variant": "v2-s"}, 384, 21.5, f"{TORCHVISION}; the paper's table 7 says 22"),
    ("efficientnet", {"variant": "v2-m"}, 480, 54.1, f"{TORCHVISION}; the paper's table 7 says 54"),
    ("efficientnet", {"variant": "v2-l"}, 480, 118.5, f"{TORCHVISION}; the paper's table 7 says 120"),
    ("vit", {"variant": "base"}, 224, 86.6, "Dosovitskiy et al. 2021, table 1: 86 M; torchvision's vit_b_16: 86.6"),
    ("vit", {"variant": "large"}, 224, 304.3, "Dosovitskiy et al. 2021, table 1: 307 M; torchvision's vit_l_16: 304.3"),
    ("vit", {"variant": "huge", "piece": 14}, 224, 632.0, "Dosovitskiy et al. 2021, table 1"),
    ("deit", {"variant": "tiny"}, 224, 5.7, "Touvron et al. 2021 (DeiT), official code: 5.7 M"),
    ("deit", {"variant": "small"}, 224, 22.05, "Touvron et al. 2021 (DeiT), table 1: 22 M"),
    ("deit", {"variant": "base"}, 224, 86.6, "Touvron et al. 2021 (DeiT), table 1: 86 M"),
    ("deit", {"variant": "base", "distilled": True}, 224, 87.3, "Touvron et al. 2021 (DeiT), official code: 87 M"),
    ("cait", {"variant": "xxs24"}, 224, 12.0, "Touvron et al. 2021 (CaiT), table 3"),
    ("cait", {"variant": "xxs36"}, 224, 17.3, "Touvron et al. 2021 (CaiT), table 3"),
    ("cait", {"variant": "xs24"}, 224, 26.6, "Touvron et al. 2021 (CaiT), table 3"),
    ("cait", {"variant": "s24"}, 224, 46.9, "Touvron et al. 2021 (CaiT), table 3"),
    ("cait", {"variant": "s36"}, 224, 68.2, "Touvron et al. 2021 (CaiT), table 3"),
    ("cait", {"variant": "m36"}, 224, 270.9, "Touvron et al. 2021 (CaiT), table 3"),
]  # fmt: skip


def parameters(name: str, settings: dict[str, Any], size: int, outputs: int = 1000) -> int:
    asked = ARCHITECTURES[name].model_validate({"norm": "batch", **settings})
    with torch.device("meta"):
        plan = Plan(dimensions=2, in_channels=3, outputs=outputs, patch=(size, size))
        return count(import_module(asked.module).build(asked, plan))


@pytest.mark.parametrize(
    ("name", "settings", "size", "millions", "source"),
    PUBLISHED,
    ids=lambda value: str(value) if isinstance(value, str | dict) else "",
)
def test_has_the_published_number_of_parameters(
    name: str, settings: dict[str, Any], size: int, millions: float, source: str
) -> None:
    assert parameters(name, settings, size) / 1e6 == pytest.approx(millions, rel=0.01), source


@pytest.mark.parametrize(
    ("variant", "depth", "features", "deit", "dimension"),
    [("tiny", 18, 512, "tiny", 192), ("small", 34, 512, "small", 384), ("base", 50, 2048, "base", 768)],
)
def test_transmed_is_a_resnet_and_a_deit(
    variant: str, depth: int, features: int, deit: str, dimension: int
) -> None:
    """Without the ResNet's classifier and the DeiT's pieces, but with a projection between them."""
    resnet = parameters("resnet", {"depth": depth}, 224) - (features + 1) * 1000
    pieces = (3 * 16 * 16 + 1) * dimension
    positions = 14 * 14 * dimension
    encoder = parameters("deit", {"variant": deit}, 224) - pieces - positions
    places = 3 * 7 * 7 * dimension
    projection = (features + 1) * dimension
    assert parameters("transmed", {"variant": variant}, 224) == resnet + encoder + places + projection


@pytest.mark.parametrize(
    ("name", "weights"), [("googlenet", (1.0, 0.3, 0.3)), ("inception_v3", (1.0, 0.4)), ("deit", (0.5, 0.5))]
)
def test_gives_its_auxiliary_outputs_only_while_it_trains(name: str, weights: tuple[float, ...]) -> None:
    asked = experiment(name, 2)
    network = build_model(asked)
    image = torch.randn(2, 1, *asked.data.patch)
    outputs = network.train()(image)
    assert [output.shape for output in outputs] == [(2, 2)] * len(weights)
    assert network.output_weights == weights
    assert network.eval()(image).shape == (2, 2)


def test_a_distilled_deit_predicts_the_mean_of_its_heads() -> None:
    asked = experiment("deit", 2)
    network = build_model(asked)
    image = torch.randn(2, 1, *asked.data.patch)
    first, second = network.train()(image)
    torch.testing.assert_close(network.eval()(image), (first + second) / 2)


@pytest.mark.parametrize("size", [(1, 1), (5, 5), (13, 9), (3, 17)])
@pytest.mark.parametrize("grid", [1, 4, 6])
def test_means_over_a_grid_equal_adaptive_pooling(size: tuple[int, int], grid: int) -> None:
    maps = torch.randn(2, 3, *size)
    torch.testing.assert_close(GridMean(grid)(maps), torch.nn.functional.adaptive_avg_pool2d(maps, grid))


def test_slices_are_looked_at_by_threes() -> None:
    """A volume of three slices is one image of three channels: the order of slices matters, a repeated last one does not."""
    asked = experiment("transmed", 3)
    network = build_model(asked).eval()
    volume = torch.randn(1, 1, *asked.data.patch)
    padded = torch.cat([volume, volume[..., -1:]], dim=-1)
    assert asked.data.patch[2] % 3 == 2
    torch.testing.assert_close(network(volume), network(padded))
    assert not torch.allclose(network(volume), network(volume.flip(-1)))


def test_dropped_paths_keep_the_mean() -> None:
    torch.manual_seed(0)
    branch = torch.ones(4000, 2, 3)
    dropped = DropPath(0.25).train()(branch)
    assert dropped.unique().tolist() == pytest.approx([0.0, 4 / 3])
    assert torch.equal(dropped.amax((1, 2)), dropped.amin((1, 2)))
    assert float(dropped.mean()) == pytest.approx(1.0, abs=0.05)
    assert DropPath(0.25).eval()(branch) is branch


@pytest.mark.parametrize("name", ["resnet", "efficientnet", "densenet", "xception"])
def test_an_instance_norm_needs_more_than_one_voxel(name: str) -> None:
    with pytest.raises(ValueError, match="is less than"):
        experiment(name, 2, norm="instance").model.check(
            Plan(dimensions=2, in_channels=1, outputs=2, patch=(32, 32))
        )
