"""The transformers: the published numbers of parameters, and what SAM's prompts say."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import architectures
import numpy as np
import pytest
import torch
from architectures import experiment
from torch import Tensor, nn

from fedmed_common import params
from fedmed_common.catalogue.base import Architecture, Plan
from fedmed_common.catalogue.transformers import SAM, UNETR, SegFormer, SwinUNETR
from fedmed_common.config import Experiment
from fedmed_common.models import build_model
from fedmed_common.tasks import build_task
from fedmed_common.tasks.segmentation import Segmentation


def plan(dimensions: Any, channels: int, outputs: int, size: int) -> Plan:
    return Plan(dimensions=dimensions, in_channels=channels, outputs=outputs, patch=(size,) * int(dimensions))


def segformer(variant: str) -> SegFormer:
    return SegFormer.model_validate({"variant": variant, "norm": "batch"})


def sam(variant: str) -> SAM:
    return SAM.model_validate({"variant": variant})


ADE20K = plan(2, 3, 150, 512)
PUBLISHED: dict[str, tuple[Architecture, Plan, float]] = {
    # Xie et al. 2021, table 1: encoder and decoder, ADE20K.
    "SegFormer B0": (segformer("b0"), ADE20K, 3.8e6),
    "SegFormer B1": (segformer("b1"), ADE20K, 13.7e6),
    "SegFormer B2": (segformer("b2"), ADE20K, 27.5e6),
    "SegFormer B3": (segformer("b3"), ADE20K, 47.3e6),
    "SegFormer B4": (segformer("b4"), ADE20K, 64.1e6),
    "SegFormer B5": (segformer("b5"), ADE20K, 84.7e6),
    # Hatamizadeh et al. 2022, 'UNETR': 92.58 M; BTCV's 13 organs, one channel.
    "UNETR": (UNETR(), plan(3, 1, 14, 96), 92.58e6),
    # Hatamizadeh et al. 2022, 'Swin UNETR': 61.98 M; BraTS, 48 features.
    "Swin UNETR": (SwinUNETR(), plan(3, 4, 3, 128), 61.98e6),
    # The official checkpoints, in bytes, over 4 bytes a number.
    "SAM ViT-B": (sam("vit_b"), plan(2, 3, 2, 1024), 375_042_383 / 4),
    "SAM ViT-L": (sam("vit_l"), plan(2, 3, 2, 1024), 1_249_524_607 / 4),
    "SAM ViT-H": (sam("vit_h"), plan(2, 3, 2, 1024), 2_564_550_879 / 4),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_as_many_parameters_as_published(name: str) -> None:
    """Without memory for them. Figures are rounded to 0.1 M."""
    settings, asked, published = PUBLISHED[name]
    settings.check(asked)
    with torch.device("meta"):
        network = import_module(settings.module).build(settings, asked)
    count = sum(parameter.numel() for parameter in network.parameters())
    assert count == pytest.approx(published, rel=0.01, abs=0.05e6)


_BUILDS = """
import sys
from architectures import experiment
from fedmed_common.models import build_model
for name in ("unetr", "swin_unetr"):
    build_model(experiment(name, 2))
    assert not {"transformers", "peft"} & sys.modules.keys(), name
build_model(experiment("segformer", 2))
assert "transformers" in sys.modules
assert "peft" not in sys.modules
"""


def test_transformers_is_imported_only_for_what_is_made_of_it() -> None:
    paths = {"PYTHONPATH": str(Path(architectures.__file__).parent)}
    done = subprocess.run(
        [sys.executable, "-c", _BUILDS], capture_output=True, text=True, check=False, env=os.environ | paths
    )
    assert done.returncode == 0, done.stderr


def squares(asked: Experiment) -> Tensor:
    """One label map ``(1, 32, 48)``: class 1 in rows 4 to 9 and columns 20 to 29, with a piece at 12, 25; class 2 nowhere."""
    label = torch.zeros(1, *asked.data.patch, dtype=torch.int64)
    label[:, 4:10, 20:30] = 1
    label[:, 12, 25] = 1
    return label


def prompts_of(network: nn.Module, label: Tensor) -> Tensor:
    prompts: Tensor = network.prompt(label)  # type: ignore[operator]
    return prompts


def test_a_box_holds_all_of_a_class_with_the_margin() -> None:
    """As x, y of the first and of the last voxel; none of a class that is not there, and none beyond the image."""
    asked = experiment("sam", 2, box_margin=3)
    network = build_model(asked)
    prompts = prompts_of(network, squares(asked))
    assert prompts.shape == (1, 2, 4)
    assert prompts[0, 0].tolist() == [17.0, 1.0, 32.0, 15.0]
    assert prompts[0, 1].isnan().all()
    everywhere = torch.ones_like(squares(asked))
    assert prompts_of(network, everywhere)[0, 0].tolist() == [0.0, 0.0, 47.0, 31.0]


def test_a_point_lies_deepest_within_a_class() -> None:
    """Rows 4 to 9 of columns 20 to 29: the first of the places that are three voxels from the outline."""
    asked = experiment("sam", 2, prompts="point")
    prompts = prompts_of(build_model(asked), squares(asked))
    assert prompts.shape == (1, 2, 2)
    assert prompts[0, 0].tolist() == [22.0, 6.0]
    assert prompts[0, 1].isnan().all()


@pytest.mark.parametrize("prompts", ["box", "point"])
def test_the_answer_depends_on_the_prompt(prompts: str) -> None:
    """A class without one is nowhere; one prompt per class, so that another class's changes nothing."""
    asked = experiment("sam", 2, prompts=prompts)
    network = build_model(asked).eval()
    image = torch.randn(1, 1, *asked.data.patch, generator=torch.Generator().manual_seed(1))
    label = squares(asked)
    with torch.no_grad():
        there = network(image, prompts_of(network, label))
        elsewhere = network(image, prompts_of(network, label.roll((10, -15), (1, 2))))
        label[:, 20:28, 2:9] = 2
        both = network(image, prompts_of(network, label))
        alone = network(image)
    assert not torch.equal(there[:, 1], elsewhere[:, 1])
    assert bool((there.argmax(1) != 2).all())
    assert bool((there[:, 0] == 0).all())
    torch.testing.assert_close(both[:, 1], there[:, 1])
    assert bool((both[:, 2] > there[:, 2]).all())
    assert bool((alone > -1e3).all())


def test_a_prompt_is_where_it_is_in_the_image_that_the_encoder_sees() -> None:
    """Of a patch of 32 x 48 scaled to 64: x and y are times 64 / 48."""
    asked = experiment("sam", 2, prompts="point")
    network = build_model(asked).eval()
    seen: list[Tensor] = []
    encoder = network.get_submodule("network.prompt_encoder")
    encoder.register_forward_pre_hook(
        lambda _, __, named: seen.append(named["input_points"]), with_kwargs=True
    )
    with torch.no_grad():
        network(torch.randn(1, 1, *asked.data.patch), torch.tensor([[[24.0, 6.0], [3.0, 30.0]]]))
    torch.testing.assert_close(seen[0][0, :, 0], torch.tensor([[32.0, 8.0], [4.0, 40.0]]))


def test_of_sam_only_the_mask_decoder_trains() -> None:
    frozen, whole = (build_model(experiment("sam", 2, train_encoder=train)) for train in (False, True))
    names = {".".join(name.split(".")[:2]) for name in params.trained(frozen)}
    assert names == {"network.mask_decoder"}
    further = {".".join(name.split(".")[:2]) for name in params.trained(whole)}
    assert further == {"network.mask_decoder", "network.vision_encoder"}
    asked = experiment("sam", 2)
    image = torch.randn(1, 1, *asked.data.patch)
    task = build_task(asked)
    task.objective(frozen.train(), image, squares(asked), torch.ones(1, 2, dtype=torch.bool)).backward()
    touched = {name for name, weight in frozen.named_parameters() if weight.grad is not None}
    assert touched == set(params.trained(frozen))


def test_measurement_draws_its_prompts_from_the_reference_window_by_window() -> None:
    """What lies outside a window is not in its prompt: an image of one window gets that window's own answer."""
    asked = experiment("sam", 2)
    network = build_model(asked).eval()
    task = build_task(asked)
    assert isinstance(task, Segmentation)
    label = squares(asked)
    image = torch.randn(1, 1, *asked.data.patch, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted = network(image, prompts_of(network, label)).argmax(1)
    reference = label.numpy()[0].astype(np.uint8)
    found = task.predict(network, image.numpy()[0][..., None], "cpu", reference[..., None])
    assert np.array_equal(found[..., 0], wanted.numpy()[0])
    nothing = np.zeros_like(reference)
    assert not task.predict(network, image.numpy()[0][..., None], "cpu", nothing[..., None]).any()
