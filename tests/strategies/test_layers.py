"""What is found out about a network: the bias of its logits."""

from __future__ import annotations

import pytest
import torch
from architectures import EACH, experiment

from fedmed_common import params
from fedmed_common.errors import ConfigError
from fedmed_common.models import build_model
from fedmed_strategies.layers import layers_of, logit_bias
from fedmed_strategies.presets import RECIPES
from fedmed_strategies.validity import refuse_network

SEGMENTERS = [pair for pair in EACH if experiment(*pair).task.name == "segmentation"]
WITHOUT = {"fcn", "sam", "ensemble", "late_fusion", "planes"}
"""Logits are sums of several layers', means of probabilities, or masks; all others end in a bias."""


@pytest.mark.parametrize(("name", "dimensions"), SEGMENTERS, ids=str)
def test_the_bias_of_the_logits_is_found_by_what_it_does(name: str, dimensions: int) -> None:
    asked = experiment(name, dimensions)
    model, plan = build_model(asked), asked.plan
    layers, image = layers_of(model, asked.model.head, plan.outputs), (plan.in_channels, *plan.patch)
    before = params.from_model(model)
    if name in WITHOUT:
        with pytest.raises(ConfigError, match="no bias of this network is added"):
            logit_bias(model, layers, image)
    else:
        found = logit_bias(model, layers, image)
        model.eval()
        shown = torch.randn(2, *image)
        with torch.no_grad():
            logits = model(shown)
            dict(model.named_parameters())[found][-1] += 3.0
            moved = model(shown) - logits
            dict(model.named_parameters())[found][-1] = torch.from_numpy(before[found])[-1]
        model.train()
        torch.testing.assert_close(moved[:, -1], torch.full_like(moved[:, -1], 3.0), rtol=0, atol=1e-4)
        assert not moved[:, :-1].any()
    assert all((array == before[key]).all() for key, array in params.from_model(model).items())
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("name", ["longtail", "operating_point", "head_retraining"])
def test_a_stage_is_refused_before_training_where_it_cannot_change_the_network(name: str) -> None:
    asked = experiment("ensemble", 2)
    with pytest.raises(ConfigError, match="this network") as refused:
        refuse_network(RECIPES[name], asked, build_model(asked))
    assert refused.value.field == "model.name"
    fine = experiment("unet_2015", 2)
    refuse_network(RECIPES[name], fine, build_model(fine))


def test_the_long_tails_recipe_takes_the_network_that_is_the_default() -> None:
    asked = experiment("unet", 3)
    refuse_network(RECIPES["longtail"], asked, build_model(asked))
