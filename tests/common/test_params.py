"""Arithmetic on parameters."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedmed_common import params
from fedmed_common.errors import WireError
from fedmed_common.metrics import Mean, class_mean, merge
from fedmed_common.params import WeightedMean


def _network() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2))


def test_parameters_survive_the_way_into_a_model_and_back() -> None:
    first, second = _network(), _network()
    taken = params.from_model(first)
    assert "1.num_batches_tracked" not in taken
    assert "1.running_mean" in taken
    params.to_model(taken, second)
    for name, array in params.from_model(second).items():
        np.testing.assert_array_equal(array, taken[name])
    assert params.norm(params.delta(second, taken)) == 0
    assert params.count(taken) == sum(array.size for array in taken.values())


def test_parameters_are_a_copy() -> None:
    network = _network()
    taken = params.from_model(network)
    with torch.no_grad():
        network[0].weight.add_(1)
    assert not np.array_equal(taken["0.weight"], params.from_model(network)["0.weight"])


@given(st.lists(st.tuples(st.integers(1, 1000), st.floats(-10, 10, width=32)), min_size=1, max_size=20))
def test_the_mean_is_the_weighted_mean(parts: list[tuple[int, float]]) -> None:
    mean = WeightedMean({"w": np.zeros(3, np.float32)})
    for weight, value in parts:
        mean.add({"w": np.full(3, value, np.float32)}, weight)
    expected = np.average([value for _, value in parts], weights=[weight for weight, _ in parts])
    np.testing.assert_allclose(mean.mean()["w"], expected, rtol=1e-4, atol=1e-4)


@given(
    st.lists(st.tuples(st.integers(2, 50), st.floats(-5, 5, width=32)), min_size=1, max_size=6),
    st.integers(0, 99),
)
def test_running_statistics_are_those_of_all_sites_values_together(
    sites: list[tuple[int, float]], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    values = [rng.normal(place, 1 + abs(place), (count, 3)) for count, place in sites]
    start = {name: rng.random(3).astype(np.float32) for name in ("running_mean", "running_var")}
    mean = WeightedMean(start)
    for part in values:
        own = {"running_mean": part.mean(0), "running_var": part.var(0)}
        mean.add({name: own[name].astype(np.float32) - start[name] for name in start}, len(part))
    pooled, change = np.concatenate(values), mean.mean()
    for name, expected in (("running_mean", pooled.mean(0)), ("running_var", pooled.var(0))):
        np.testing.assert_allclose(start[name] + change[name], expected, rtol=1e-3, atol=1e-4, err_msg=name)


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_a_weight_must_be_positive(weight: float) -> None:
    with pytest.raises(ValueError, match="weight"):
        WeightedMean({"w": np.zeros(1, np.float32)}).add({"w": np.zeros(1, np.float32)}, weight)


def test_the_mean_of_nothing_is_an_error() -> None:
    with pytest.raises(ZeroDivisionError):
        WeightedMean({"w": np.zeros(1, np.float32)}).mean()


def test_metrics_add_before_they_divide() -> None:
    merged = merge(
        [
            {"dice/a": Mean(1.0, 1.0)},
            {"dice/a": Mean(1.0, 3.0), "dice/b": Mean(2.0, 2.0), "loss": Mean(9.0, 1.0)},
        ]
    )
    assert merged["dice/a"].value == 0.5
    assert class_mean(merged, "dice") == 0.75
    assert np.isnan(class_mean(merged, "nsd"))


@pytest.mark.parametrize(
    "change",
    [{"0.bias": np.zeros(1, np.float32)}, {"extra": np.zeros(1, np.float32)}],
    ids=["broadcastable", "extra"],
)
def test_parameters_of_another_model_are_refused(change: dict[str, np.ndarray]) -> None:
    network = _network()
    with pytest.raises(WireError):
        params.to_model({**params.from_model(network), **change}, network)


def test_lengths_in_pieces_are_those_of_the_whole() -> None:
    rng = np.random.default_rng(3)
    parameters = {
        "long": rng.normal(0, 3, 100_001).astype(np.float32),
        "odd": rng.normal(0, 1e-3, (7, 5)).astype(np.float32)[:, ::2],
        "one": np.array(2.5, np.float32),
        "none": np.zeros((0, 4), np.float32),
    }
    flat = np.concatenate([array.ravel() for array in parameters.values()]).astype(np.float64)
    expected = float(np.sqrt(np.square(flat).sum()))
    assert params.norm(parameters) == pytest.approx(expected, rel=1e-13)
    assert params.rough_norm(parameters) == pytest.approx(expected, rel=1e-6)
    for value in (np.nan, np.inf, 1e30):
        assert not np.isfinite(params.rough_norm({**parameters, "bad": np.array([value], np.float32)}))


def test_a_mean_is_that_of_double_precision_and_no_number_depends_on_its_neighbours() -> None:
    rng = np.random.default_rng(4)
    updates = [rng.normal(0, 1, 150_001).astype(np.float32) for _ in range(3)]
    weights = (1.0, 0.3, 7.0)
    whole, parts = (
        WeightedMean({"a": updates[0]}),
        WeightedMean({"a": updates[0][:777], "b": updates[0][777:]}),
    )
    for update, weight in zip(updates, weights, strict=True):
        whole.add({"a": update}, weight)
        parts.add({"a": update[:777], "b": update[777:]}, weight)
    expected = np.average(np.stack(updates).astype(np.float64), axis=0, weights=weights)
    mean = whole.mean()["a"]
    np.testing.assert_allclose(mean, expected, atol=1e-6)
    assert mean.tobytes() == b"".join(array.tobytes() for array in parts.mean().values())
