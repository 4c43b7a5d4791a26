"""Networks for several modalities: one that is missing says nothing."""

from __future__ import annotations

import pytest
import torch
from architectures import experiment

from fedmed_common.models import build_model
from fedmed_common.models.hemis import together


@pytest.mark.parametrize("name", ["hemis", "late_fusion"])
@pytest.mark.parametrize("dimensions", [2, 3])
def test_what_the_encoder_of_a_missing_modality_holds_changes_nothing(name: str, dimensions: int) -> None:
    network = build_model(experiment(name, dimensions, channels=3)).eval()
    patch = (16, 24) if dimensions == 2 else (16, 8, 8)
    image = torch.randn(2, 3, *patch)
    image[0, 1] = 0
    before = network(image)
    part = network.encoders[1] if name == "hemis" else network.members[1]
    with torch.no_grad():
        for parameter in part.parameters():
            parameter.add_(1.0)
    after = network(image)
    assert torch.equal(before[0], after[0])
    assert not torch.equal(before[1], after[1])


def test_late_fusion_is_the_mean_of_probabilities_of_those_that_are_there() -> None:
    network = build_model(experiment("late_fusion", 2, channels=3)).eval()
    image = torch.randn(1, 3, 16, 24)
    image[:, 2] = 0
    expected = torch.stack([network.members[k](image[:, k : k + 1]).softmax(1) for k in (0, 1)]).mean(0)
    torch.testing.assert_close(network(image).softmax(1), expected)
    nothing = network(torch.zeros(1, 3, 16, 24))
    assert torch.isfinite(nothing).all()


def test_mean_and_variance_are_over_the_modalities_that_are_there() -> None:
    features = torch.randn(2, 3, 4, 5, 6)
    there = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, 1.0]])
    found = together(features, there)
    for sample, kept in ((0, [0, 1, 2]), (1, [0, 2])):
        of_sample = features[sample, kept]
        torch.testing.assert_close(found[sample, :4], of_sample.mean(0))
        torch.testing.assert_close(found[sample, 4:], of_sample.var(0, unbiased=False))
    assert not together(features, torch.zeros(2, 3)).any()
