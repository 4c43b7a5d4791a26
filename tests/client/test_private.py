"""Private training: how much a patient can do, what a step is without noise, and where the noise comes from."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from private_sites import WIDTH, Patients, experiment, line_bench, patient, released, unit
from torch import Tensor

from fedmed_client import entropy, independence, private
from fedmed_client.private import Mechanism, Samples, clipped_sum
from fedmed_client.workbench import Bench, bench_for
from fedmed_common import params
from fedmed_common.errors import PolicyRefusal

C = 0.7


def _silent(count: int) -> Tensor:
    return torch.zeros(count, dtype=torch.float64)


def _mechanism(**changes: Any) -> Mechanism:
    plain = Mechanism(clipping_norm=C, noise_multiplier=1.0, sampling_rate=0.5, patients=6)
    return replace(plain, **changes)


@pytest.fixture
def unet() -> Bench:
    return bench_for(experiment().order_text())


def _discs(seed: int, count: int = 2, scale: float = 1.0) -> Samples:
    rng = torch.Generator().manual_seed(seed)
    image = scale * torch.randn(count, 1, 16, 16, generator=rng)
    return image, (image[:, 0] > 0).long(), torch.ones(count, 1, dtype=torch.bool)


def _with(pixels: float, everywhere: bool = False) -> Samples:
    image, target, annotated = _discs(9)
    image[0] = pixels if everywhere else image[0].masked_fill(image[0] > 1, pixels)
    return image, target, annotated


HOSTILE = {
    "ordinary": _discs(1),
    "one slice": _discs(2, count=1),
    "200 slices": _discs(3, count=200),
    "large pixels": _discs(4, scale=1e6),
    "1e30": _with(1e30),
    "1e30 everywhere": _with(1e30, everywhere=True),
    "NaN": _with(float("nan")),
    "infinite": _with(float("inf")),
    "constant": _with(0.0, everywhere=True),
}


@pytest.mark.parametrize("hostile", HOSTILE.values(), ids=HOSTILE)
def test_no_patient_moves_the_sum_by_more_than_the_norm(unet: Bench, hostile: Samples) -> None:
    parameters = list(unet.model.parameters())
    others = [_discs(5), _discs(6, count=3)]
    without = clipped_sum(unet, parameters, _mechanism(), others)
    with_it = clipped_sum(unet, parameters, _mechanism(), [*others[:1], hostile, *others[1:]])
    moved = torch.cat([(a - b).flatten() for a, b in zip(with_it, without, strict=True)])
    assert torch.isfinite(moved).all()
    assert float(moved.norm()) <= C * (1 + 1e-12)


def test_who_is_not_finite_counts_as_who_was_not_drawn(unet: Bench) -> None:
    parameters = list(unet.model.parameters())
    alone = clipped_sum(unet, parameters, _mechanism(), [_discs(5)])
    for name in ("NaN", "infinite"):
        beside = clipped_sum(unet, parameters, _mechanism(), [HOSTILE[name], _discs(5)])
        assert all(torch.equal(a, b) for a, b in zip(alone, beside, strict=True))


def test_long_gradients_are_shortened_as_a_whole_and_short_ones_stay() -> None:
    bench = line_bench()
    mechanism = _mechanism(normal=_silent, patients=2)
    short, long = patient(unit(0, 0.1), unit(1, 0.3)), patient(unit(2, 30.0), unit(3, 40.0))
    torch.testing.assert_close(released(bench, mechanism, [short])[:2].float(), torch.tensor([0.05, 0.15]))
    torch.testing.assert_close(
        released(bench, mechanism, [long])[2:4].float(), torch.tensor([0.6 * C, 0.8 * C])
    )


def test_parts_of_a_patient_add_up_to_the_patient(unet: Bench) -> None:
    parameters = list(unet.model.parameters())
    samples = _discs(7, count=5)
    whole = private.patient_gradient(unet, parameters, samples, 5)
    for at_once in (1, 2, 3):
        parts = private.patient_gradient(unet, parameters, samples, at_once)
        for one, other in zip(whole, parts, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_without_noise_a_step_is_plain_arithmetic() -> None:
    """SGD on the sum of clipped gradients over q N, also where other patients than expected are drawn."""
    bench = line_bench()
    settings = bench.experiment.train.model_copy(
        update={"optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.0, "learning_rate": 0.5, "steps": 2}
    )
    bench = replace(bench, experiment=bench.experiment.model_copy(update={"train": settings}))
    rows = np.random.default_rng(0).normal(0, 1, (6, WIDTH)).astype(np.float32)
    drawn = iter([[0, 2, 5], []])
    steps: list[int] = []
    change = private.train(
        bench,
        Patients([patient(row) for row in rows]),  # type: ignore[arg-type]
        {"w": np.zeros(WIDTH, np.float32)},
        1,
        _mechanism(normal=_silent, draw=lambda _population, _rate: next(drawn)),
        steps.append,
    )
    clipped = [row * min(1.0, C / np.linalg.norm(row.astype(np.float64))) for row in rows[[0, 2, 5]]]
    np.testing.assert_allclose(change["w"], -0.5 * sum(clipped) / (0.5 * 6), rtol=1e-5)
    assert steps == [1, 2]


def test_an_empty_draw_releases_noise() -> None:
    bench, mechanism = line_bench(), _mechanism()
    first, second = released(bench, mechanism, []), released(bench, mechanism, [])
    assert not torch.equal(first, second)
    assert bool((first != 0).all())


def test_the_noise_is_normal_with_the_deviation_that_was_asked() -> None:
    count = 400_000
    noise = entropy.normal(count)
    assert noise.dtype == torch.float64
    assert float(noise.mean()) == pytest.approx(0.0, abs=6 / count**0.5)
    assert float(noise.var()) == pytest.approx(1.0, abs=6 * (2 / count) ** 0.5)
    assert float((noise**4).mean()) == pytest.approx(3.0, abs=6 * (96 / count) ** 0.5)
    for edge in (-2.0, -1.0, 0.0, 0.5, 1.5, 3.0):
        expected = float(torch.special.ndtr(torch.tensor(edge, dtype=torch.float64)))
        spread = (expected * (1 - expected) / count) ** 0.5
        assert float((noise < edge).double().mean()) == pytest.approx(expected, abs=6 * spread)
    halves = noise.view(2, -1)
    assert float((halves[0] * halves[1]).mean()) == pytest.approx(0.0, abs=6 / (count / 2) ** 0.5)
    assert len(noise.unique()) == count


def test_releases_have_the_deviation_of_sigma_times_the_norm_over_the_expected_number() -> None:
    bench, mechanism = line_bench(), _mechanism(noise_multiplier=3.0)
    values = torch.cat([released(bench, mechanism, []) for _ in range(400)])
    expected = 3.0 * C / (0.5 * 6)
    assert float(values.std()) == pytest.approx(expected, rel=6 / (2 * len(values)) ** 0.5)


def test_chance_does_not_come_from_a_seed() -> None:
    def all_of_it() -> list[Any]:
        torch.manual_seed(0)
        np.random.seed(0)
        return [entropy.normal(64).tolist(), entropy.poisson_sample(400, 0.5), entropy.generator().random()]

    first, second = all_of_it(), all_of_it()
    assert all(one != other for one, other in zip(first, second, strict=True))


def test_each_patient_is_drawn_on_its_own_with_the_rate() -> None:
    draws, patients, rate = 3000, 20, 0.3
    counts = np.zeros(patients)
    sizes = []
    for _ in range(draws):
        drawn = entropy.poisson_sample(patients, rate)
        counts[drawn] += 1
        sizes.append(len(drawn))
    deviation = (rate * (1 - rate) / draws) ** 0.5
    np.testing.assert_allclose(counts / draws, rate, atol=6 * deviation)
    assert np.var(sizes) == pytest.approx(patients * rate * (1 - rate), rel=0.25)
    assert entropy.poisson_sample(50, 1.0) == list(range(50))
    assert entropy.poisson_sample(0, 0.5) == []


def test_the_same_order_twice_gives_other_noise(unet: Bench) -> None:
    start = params.from_model(unet.model)
    mechanism = _mechanism(patients=3)
    sampler = Patients([_discs(1), _discs(2), _discs(3)])
    one, other = (
        private.train(unet, sampler, start, 1, mechanism, lambda _step: None)  # type: ignore[arg-type]
        for _ in range(2)
    )
    assert list(one) == list(start)
    one_flat, other_flat = (
        np.concatenate([part.ravel() for part in change.values()]) for change in (one, other)
    )
    assert not np.array_equal(one_flat, other_flat)


class _Remembers(torch.nn.Module):
    """Looks at the patient before."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner, self.last = inner, torch.zeros(())

    def forward(self, x: Tensor) -> Tensor:
        mixed = x + 0.5 * self.last
        self.last = x.detach().mean()
        found: Tensor = self.inner(mixed)
        return found


class _Counts(torch.nn.Module):
    """Keeps a statistic of patients in a buffer."""

    mean: Tensor

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.mean.copy_(x.detach().mean())
        found: Tensor = self.inner(x)
        return found


class _Mixes(torch.nn.Module):
    """Lets samples of a batch see each other."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.inner(x - x.mean(0, keepdim=True))
        return found


class _Drops(torch.nn.Module):
    """Has chance in it, and is none the worse for it."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner, self.drop = inner, torch.nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.inner(self.drop(x))
        return found


def _batch_norm(inner: torch.nn.Module) -> torch.nn.Module:
    return torch.nn.Sequential(inner, torch.nn.BatchNorm2d(2, track_running_stats=False))


@pytest.mark.parametrize(
    ("wrap", "problem"),
    [
        (_Remembers, "the patient before"),
        (_Counts, "the buffer 'mean'"),
        (_Mixes, "samples beside it"),
        (_batch_norm, "batch norm"),
    ],
)
def test_a_network_in_which_patients_touch_is_refused(unet: Bench, wrap: Any, problem: str) -> None:
    bench = replace(unet, model=wrap(unet.model))
    start = params.from_model(bench.model)
    for _ in range(2):
        with pytest.raises(PolicyRefusal, match=problem) as refused:
            independence.check(bench, start, _discs(1))
        assert refused.value.rule == "privacy_network"
    assert [array.tobytes() for array in params.from_model(bench.model).values()] == [
        array.tobytes() for array in start.values()
    ]


@pytest.mark.parametrize("wrap", [torch.nn.Sequential, _Drops])
def test_a_network_in_which_they_do_not_is_not(unet: Bench, wrap: Any) -> None:
    bench = replace(unet, model=wrap(unet.model))
    independence.check(bench, params.from_model(bench.model), _discs(1))
    assert all(module.training for module in bench.model.modules())


def test_a_loss_of_the_whole_batch_is_refused(unet: Bench) -> None:
    class Coupled:
        def objective(
            self, model: torch.nn.Module, image: Tensor, target: Tensor, annotated: Tensor
        ) -> Tensor:
            logits = model(image)
            return torch.nn.functional.cross_entropy(logits, target) * logits.std()

    bench = replace(unet, model=torch.nn.Sequential(unet.model), task=Coupled())
    with pytest.raises(PolicyRefusal, match="privacy_network"):
        independence.check(bench, params.from_model(bench.model), _discs(1))
