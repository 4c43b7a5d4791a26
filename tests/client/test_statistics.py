"""Sums over a site's patients: what they are, that they say nothing of few, and what is made of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from pydantic import ValidationError

from fedmed_client.statistics import patients_of, summed
from fedmed_client.workbench import Bench, bench_for
from fedmed_common import params
from fedmed_common.config import Experiment
from fedmed_strategies.layers import last_layer, layers_of, sizes_of
from fedmed_strategies.pieces import Scene
from fedmed_strategies.stages.head_retraining import HeadRetraining
from fedmed_strategies.stages.operating_point import OperatingPoint
from fedmed_strategies.statistics.base import Statistic, clipped
from fedmed_strategies.statistics.channels import Channels
from fedmed_strategies.statistics.confusion import Confusion
from fedmed_strategies.statistics.counts import Counts
from fedmed_strategies.statistics.moments import Moments
from fedmed_strategies.statistics.operating_points import OperatingPoints
from fedmed_strategies.statistics.survey import VOLUMES, Intensities, Landmarks, Shapes, Volumes

ALL = (
    Counts(),
    Channels(),
    Moments(),
    Confusion(),
    OperatingPoints(),
    Shapes(),
    Intensities(),
    Volumes(),
    Landmarks(),
)


@dataclass(frozen=True, kw_only=True)
class Made:
    """A case made of numbers."""

    patient: int
    image: NDArray[np.float32]
    label: NDArray[np.uint8]
    annotated: tuple[bool, ...] = (True, True)
    spacing_mm: tuple[float, float, float] = (2.0, 1.0, 1.0)

    @property
    def present(self) -> tuple[bool, ...]:
        return tuple(known and bool((self.label == k + 1).any()) for k, known in enumerate(self.annotated))


@pytest.fixture
def bench() -> Bench:
    experiment = Experiment.model_validate(
        {
            "name": "made",
            "rounds": 1,
            "task": {"classes": ["common", "rare"], "dimensions": 2},
            "data": {"patch": [8, 8]},
            "model": {"name": "unet_2015", "channels": [4, 6]},
            "train": {"threads": 1},
        }
    )
    bench = bench_for(experiment.order_text())
    bench.model.eval()
    return bench


def cases(patients: int, rare: int) -> list[Any]:
    """Pictures of 12 x 10 with a common square in each, and a rare one in the first few."""
    rng = np.random.default_rng(5)
    made: list[Any] = []
    for patient in range(patients):
        label = np.zeros((12, 10, 1), np.uint8)
        label[1:5, 2 : 4 + patient % 3] = 1
        if patient < rare:
            label[7:10, 6:9] = 2
        image = (rng.normal(0, 0.3, label.shape) + label).astype(np.float32)[None]
        made.append(Made(patient=patient, image=image, label=label))
    return made


def none_reserved() -> None:
    raise AssertionError("nothing is spent without noise")


def sums_of(statistic: Statistic, bench: Bench, of: list[Any], least: int = 1) -> params.Parameters:
    return summed(statistic, bench, of, least, none_reserved)


@pytest.mark.parametrize("statistic", ALL, ids=lambda one: one.name)
def test_a_sum_of_two_sites_is_that_of_both_together(statistic: Statistic, bench: Bench) -> None:
    both = cases(5, 2)
    together, first, second = (sums_of(statistic, bench, part) for part in (both, both[:2], both[2:]))
    for name in together:
        np.testing.assert_allclose(together[name], first[name] + second[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("statistic", ALL, ids=lambda one: one.name)
def test_no_patient_adds_more_than_the_sensitivity(statistic: Statistic, bench: Bench) -> None:
    sizes = sizes_of(bench.experiment, bench.model)
    few = {"most_classes": 1} if "most_classes" in type(statistic).model_fields else {}
    for asked in (statistic, type(statistic)(epsilon=4.0, **few)):
        for case in cases(4, 2):
            wild = replace(case, image=case.image * 1e4)
            for patient in patients_of([case, wild], bench):
                part = asked.of_patient(patient, sizes)
                squares = [
                    float(np.square(part[name], dtype=np.float64).sum()) for name in asked.zeros(sizes)
                ]
                assert np.sqrt(sum(squares)) <= asked.sensitivity(sizes) * (1 + 1e-6)


def test_counts_count_patients_not_pictures(bench: Bench) -> None:
    of = cases(3, 1)
    twice = [*of, replace(of[0], image=of[0].image)]
    np.testing.assert_array_equal(sums_of(Counts(), bench, twice)["presence"], [3, 1])


def test_classes_of_few_patients_stay(bench: Bench) -> None:
    of = cases(6, 2)
    np.testing.assert_array_equal(sums_of(Counts(), bench, of, least=5)["presence"], [6, 5])
    moments = sums_of(Moments(), bench, of, least=5)
    np.testing.assert_array_equal(moments["patients"], [6, 6, 0])
    assert not moments["first"][2].any()
    assert not moments["second"][2].any()
    points = sums_of(OperatingPoints(), bench, of, least=5)
    assert not points["dice"][1].any()
    assert (points["shown"].tolist(), points["absent"].tolist()) == ([6, 0], [0, 0])
    assert not sums_of(Channels(), bench, of[:4], least=5)["mean"].any()


def test_no_two_dice_of_a_row_differ_by_few_patients() -> None:
    """Columns take 0, 1, 2, 5 and 9 of ten patients out; of four patients nothing is said."""
    statistic = OperatingPoints(offsets=(0.0, 1.0), volumes_mm3=(0.0, 1.0, 2.0, 3.0, 4.0, 5.0))
    called = np.array([[[10, 10, 9, 8, 5, 1], [4, 4, 3, 3, 2, 0]]], np.float32)
    dice = 0.5 * called
    few = {"shown": np.full(1, 10.0, np.float32), "absent": np.full(1, 10.0, np.float32)}
    sums = {"dice": dice, "called": called, "false": np.zeros_like(dice), **few}
    told = statistic.releasable(sums, 5)["dice"]
    np.testing.assert_array_equal(told, [[[5, 5, 2.5, 2.5, 2.5, 0], [0, 0, 0, 0, 0, 0]]])
    np.testing.assert_array_equal(statistic.releasable(sums, 1)["dice"], dice)


def test_what_is_aside_stays(bench: Bench) -> None:
    assert OperatingPoints().aside(sizes_of(bench.experiment, bench.model))
    for statistic in (OperatingPoints(), OperatingPoints(epsilon=1.0)):
        found = summed(statistic, bench, cases(6, 2), 5, lambda: None)
        assert set(found) == {"dice", "false", "shown", "absent"}


@given(
    called=arrays(np.float32, (1, 3, 8), elements=st.integers(0, 12).map(float)),
    least=st.integers(1, 6),
)
def test_what_is_told_of_volumes_is_of_sets_that_differ_by_many(
    called: NDArray[np.float32], least: int
) -> None:
    """With a Dice of 1 each, a sum is a number of patients: any two that differ do so by many, and none is too great."""
    called = -np.sort(-called, axis=-1)
    full = np.full(1, 12.0, np.float32)
    sums = {"dice": called, "called": called, "false": called, "shown": full, "absent": full}
    told = OperatingPoints().releasable(sums, least)["dice"]
    assert (told <= called).all()
    for row in told[0]:
        numbers = np.unique(np.append(row, 0.0))
        assert (np.diff(numbers) >= least).all()


def test_how_many_of_the_few_there_are_is_not_told() -> None:
    """Of twenty patients one to four show the class, which is called in everyone, or in seven of the others."""
    statistic, told = OperatingPoints(offsets=(0.0,), volumes_mm3=(0.0, 1.0)), []
    for shown in (1, 2, 3, 4):
        called = np.array([[[shown, 1]]], np.float32)
        false = np.array([[[20 - shown, 7]]], np.float32)
        count = {"shown": np.full(1, shown, np.float32), "absent": np.full(1, 20 - shown, np.float32)}
        told.append(statistic.releasable({"dice": called, "called": called, "false": false, **count}, 5))
    for one in told:
        assert (one["shown"].tolist(), one["absent"].tolist()) == ([0], [15])
        np.testing.assert_array_equal(one["dice"], [[[0, 0]]])
        np.testing.assert_array_equal(one["false"], [[[15, 7]]])


@pytest.mark.parametrize("field", ["offsets", "volumes_mm3"])
def test_points_are_in_order_and_not_too_many(field: str) -> None:
    for wrong in ((1.0, 0.0), (0.0, 0.0), tuple(float(value) for value in range(51)), ()):
        with pytest.raises(ValidationError):
            OperatingPoints(**{field: wrong})


def test_noise_has_the_declared_deviation_and_comes_after_the_reservation(bench: Bench) -> None:
    noisy, reserved = Counts(epsilon=1.0), list[int]()
    of, sizes = cases(6, 2), sizes_of(bench.experiment, bench.model)
    plain = sums_of(Counts(), bench, of)["presence"]
    drawn = np.array(
        [summed(noisy, bench, of, 5, lambda: reserved.append(1))["presence"] - plain for _ in range(400)]
    )
    assert len(reserved) == 400
    wanted = noisy.noise_multiplier * noisy.sensitivity(sizes)
    assert drawn.std() == pytest.approx(wanted, rel=0.12)
    assert abs(drawn.mean()) < 6 * wanted / np.sqrt(drawn.size)


def test_moments_are_those_of_what_the_last_layer_sees(bench: Bench) -> None:
    (case,) = cases(1, 1)
    layers = layers_of(bench.model, bench.experiment.model.head, 3)
    layer = last_layer(bench.model, layers)
    found = sums_of(Moments(bound=1e6), bench, [case])
    weight, bias = (
        dict(bench.model.named_parameters())[name].detach().numpy() for name in (layer.weight, layer.bias)
    )
    logits = [
        found["first"][c] / max(found["patients"][c], 1) @ weight.reshape(3, -1).T + bias for c in range(3)
    ]
    seen: dict[int, list[NDArray[np.float32]]] = {0: [], 1: [], 2: []}
    padded = np.zeros((1, 16, 16), np.float32)
    padded[:, :12, :10] = case.image[..., 0]
    for x, y in product((0, 8), (0, 8)):
        with torch.inference_mode():
            out = bench.model(torch.from_numpy(padded[None, :, x : x + 8, y : y + 8]))[0].numpy()
        part = case.label[x : x + 8, y : y + 8, 0]
        for c, rows in seen.items():
            rows.extend(out[:, : part.shape[0], : part.shape[1]][:, part == c].T)
    for c, rows in seen.items():
        np.testing.assert_allclose(logits[c], np.mean(rows, axis=0), atol=1e-4)


def test_an_operating_point_is_what_the_changed_model_does(bench: Bench) -> None:
    """Dice and false positives at an offset and a least volume, by counting, and by predicting with that bias and volume."""
    statistic = OperatingPoints(offsets=(-1.0, 0.0, 1.5), volumes_mm3=(0.0, 30.0))
    of = cases(4, 2)
    found = sums_of(statistic, bench, of)
    layers = layers_of(bench.model, bench.experiment.model.head, 3)
    bias = dict(bench.model.named_parameters())[last_layer(bench.model, layers).bias]
    start = bias.detach().clone()
    for place, (row, offset), (column, volume) in product(
        range(2), enumerate(statistic.offsets), enumerate(statistic.volumes_mm3)
    ):
        with torch.no_grad():
            bias.copy_(start)
            bias[place + 1] += offset
        least = np.zeros(2, np.float32)
        least[place] = volume
        scores = [bench.task.measure(bench.model, case, "cpu", {"least_mm3": least}) for case in of]
        name = bench.experiment.task.classes[place]
        dice = sum(score[f"dice/{name}"].total for score in scores if f"dice/{name}" in score)
        false = sum(
            score[f"false_positive/{name}"].total for score in scores if f"false_positive/{name}" in score
        )
        assert found["dice"][place, row, column] == pytest.approx(dice, abs=2e-2)
        assert found["false"][place, row, column] == pytest.approx(false)
    with torch.no_grad():
        bias.copy_(start)


def test_the_operating_point_with_the_best_value_is_chosen_and_the_smallest_change_of_equals() -> None:
    stage = OperatingPoint(
        points=OperatingPoints(offsets=(-1.0, 0.0, 1.0), volumes_mm3=(0.0, 50.0)), cost=0.5, rare=0
    )
    dice = np.array(
        [[[2, 2], [4, 4], [4, 4]], [[1, 1], [2, 2], [9, 9]], [[9, 9], [0, 0], [9, 9]]], np.float32
    )
    false = np.array(
        [[[0, 0], [8, 0], [8, 8]], [[0, 0], [0, 0], [1, 0]], [[0, 0], [0, 0], [0, 0]]], np.float32
    )
    sums = {"dice": dice, "false": false}
    sums |= {"shown": np.array([5, 10, 2], np.float32), "absent": np.full(3, 8, np.float32)}
    offsets, volumes = stage.choose(sums)
    np.testing.assert_array_equal(offsets, [0, 1, 0])
    np.testing.assert_array_equal(volumes, [50, 50, 0])
    unknown = {**sums, "shown": np.zeros(3, np.float32)}
    unknown["false"] = np.array(
        [[[0, 0], [8, 2], [8, 8]], [[0, 0], [2, 0], [8, 8]], [[9, 9], [8, 3], [9, 9]]]
    )
    np.testing.assert_array_equal(stage.choose(unknown)[0], [0, 0, 0])
    np.testing.assert_array_equal(stage.choose(unknown)[1], [50, 0, 50])
    few = {**unknown, "absent": np.full(3, 2.0)}
    np.testing.assert_array_equal(stage.choose(few)[1], [0, 0, 0])
    readily = {**sums, "dice": dice[:, ::-1].copy(), "false": np.zeros_like(false)}
    np.testing.assert_array_equal(stage.choose(readily)[0], [0, -1, 0])
    np.testing.assert_array_equal(stage.model_copy(update={"rare": 8}).choose(readily)[0], [0, -1, 0])
    np.testing.assert_array_equal(stage.model_copy(update={"rare": 50}).choose(readily)[0], [0, 0, 0])


def test_head_retraining_finds_a_class_whose_row_was_lost(bench: Bench) -> None:
    layers = layers_of(bench.model, bench.experiment.model.head, 3)
    layer = last_layer(bench.model, layers)
    rng = np.random.default_rng(0)
    centres = np.eye(3, 4) * 4
    sums = {
        "patients": np.array([9, 9, 9], np.float32),
        "first": (9 * centres).astype(np.float32),
        "second": np.stack([9 * (np.outer(c, c) + 0.2 * np.eye(4)) for c in centres]).astype(np.float32),
    }
    parameters = params.from_model(bench.model)
    parameters[layer.weight] = parameters[layer.weight].copy()
    parameters[layer.weight][2] = 0
    parameters[layer.bias] = np.array([0, 0, -20], np.float32)
    scene = Scene(classes=("common", "rare"), background=True, layers=layers, sites=(), round=1, rounds=1)
    changed, _ = HeadRetraining().apply(parameters, sums, scene, bench.model)
    drawn = np.concatenate([centre + rng.normal(0, 0.4, (50, 4)) for centre in centres])
    logits = drawn @ changed[layer.weight].reshape(3, -1).T + changed[layer.bias]
    assert (logits.argmax(1) == np.repeat(np.arange(3), 50)).mean() > 0.9
    again, _ = HeadRetraining().apply(parameters, sums, scene, bench.model)
    np.testing.assert_array_equal(again[layer.weight], changed[layer.weight])
    untouched = {"patients": np.array([9, 9, 1], np.float32)}
    kept, _ = HeadRetraining().apply(parameters, {**sums, **untouched}, scene, bench.model)
    np.testing.assert_array_equal(kept[layer.weight][2], parameters[layer.weight][2])


def test_a_feature_that_is_no_number_adds_nothing() -> None:
    vectors = np.array([[np.nan, np.inf, 3.0], [1.0, -np.inf, 4.0]])
    np.testing.assert_allclose(clipped(vectors, 1.0), [[0, 0, 0.6], [1, 0, 0.8]])


@pytest.mark.parametrize(
    ("presence", "told"),
    [
        ([27, 10, 3, 0], [27, 6.5, 6.5, 0]),
        ([27, 9, 4, 0], [27, 6.5, 6.5, 0]),
        ([30, 4, 3, 3], [30, 10 / 3, 10 / 3, 10 / 3]),
        ([38, 1, 1, 0], [40 / 3, 40 / 3, 40 / 3, 0]),
        ([20, 10, 10, 0], [20, 10, 10, 0]),
    ],
)
def test_where_each_patient_shows_one_class_the_rest_does_not_tell_a_small_count(
    presence: list[float], told: list[float]
) -> None:
    sums = {"presence": np.array(presence, np.float32), "annotated": np.full(4, 40, np.float32)}
    np.testing.assert_allclose(Counts().releasable(sums, 5)["presence"], told, rtol=1e-6)
    if told != presence:  # who shows several classes leaves no rest
        sums["annotated"] += 1
        np.testing.assert_array_equal(
            Counts().releasable(sums, 5)["presence"], [5 if 0 < count < 5 else count for count in presence]
        )


def test_a_class_that_few_lack_is_said_to_be_in_all(bench: Bench) -> None:
    told = {least: sums_of(Volumes(), bench, cases(6, 4), least)["shown"].sum(axis=1) for least in (1, 3, 5)}
    assert told[1].tolist() == [6.0, 4.0]
    assert told[3].tolist() == [6.0, 6.0]
    assert told[5].tolist() == [6.0, 0.0]


def test_volumes_are_in_cubic_millimetres(bench: Bench) -> None:
    (case,) = cases(1, 1)
    told = sums_of(Volumes(), bench, [case])["shown"]
    voxels = np.count_nonzero(case.label == 2)
    assert np.flatnonzero(told[1]).tolist() == VOLUMES.places(np.array([voxels * 2.0])).tolist()


def test_what_is_said_of_intensities_does_not_tell_how_few_show_nothing(bench: Bench) -> None:
    """Of twelve patients one has no label: as many are said to have foreground as have an image."""
    made = cases(12, 0)
    bare = replace(made[0], label=np.zeros_like(made[0].label))
    told = sums_of(Intensities(), bench, [bare, *made[1:]], least=5)
    assert told["image"].sum() == pytest.approx(12) and told["foreground"].sum() == pytest.approx(12)
    plain = sums_of(Intensities(), bench, [bare, *made[1:]], least=1)
    assert plain["foreground"].sum() == pytest.approx(11)


def test_groups_stay_whole_numbers_where_all_but_a_few_show_a_class(bench: Bench) -> None:
    told = sums_of(Volumes(), bench, cases(12, 11), least=3)["shown"][1]
    assert told.sum() == 12 and np.array_equal(told, np.round(told))
