"""Private training: how much a patient can do, what a step is without noise, and where the noise comes from."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from private_sites import WIDTH, Patients, experiment, line_bench, patient, released, unit
from scipy import stats
from torch import Tensor

from fedmed_client import independence, private
from fedmed_client.patient_gradients import Samples, patient_gradient
from fedmed_client.private import Mechanism, clipped_sum
from fedmed_client.workbench import Bench, bench_for
from fedmed_common import entropy, params
from fedmed_common.config import Experiment
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
    whole = patient_gradient(unet, parameters, samples, 5)
    for at_once in (1, 2, 3):
        parts = patient_gradient(unet, parameters, samples, at_once)
        for one, other in zip(whole, parts, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("prefetch", [0, 1, 5])
def test_without_noise_a_step_is_plain_arithmetic(prefetch: int) -> None:
    """SGD on the sum of clipped gradients over q N, also where other patients than expected are drawn."""
    bench = line_bench()
    settings = bench.experiment.train.model_copy(
        update={
            "optimizer": "sgd",
            "momentum": 0.0,
            "weight_decay": 0.0,
            "learning_rate": 0.5,
            "steps": 2,
            "prefetch": prefetch,
        }
    )
    bench = replace(bench, experiment=bench.experiment.model_copy(update={"train": settings}))
    rows = np.random.default_rng(0).normal(0, 1, (6, WIDTH)).astype(np.float32)
    drawn = iter([[0, 2, 5], []])
    steps: list[int] = []
    change, _ = private.train(
        bench,
        Patients([patient(row) for row in rows]),  # type: ignore[arg-type]
        {"w": np.zeros(WIDTH, np.float32)},
        1,
        _mechanism(noise_multiplier=0.0, draw=lambda _population, _rate: next(drawn)),
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


def test_the_noise_passes_the_tests_of_a_normal_distribution() -> None:
    noise = entropy.normal(1_000_000).numpy()
    assert stats.kstest(noise, "norm").pvalue > 1e-6
    assert stats.kurtosistest(noise).pvalue > 1e-6
    assert stats.skewtest(noise).pvalue > 1e-6


def test_the_farthest_draws_have_no_gaps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entropy, "_words", lambda count: np.arange(count, dtype=np.uint64) << np.uint64(1))
    tails = -entropy.normal(3)
    assert tails[0] > tails[1] > tails[2] > 8.9


def test_what_a_patient_adds_and_the_noise_are_on_one_grid() -> None:
    mechanism = _mechanism(noise_multiplier=1.3)
    spacing = entropy.grid(mechanism.deviation)
    assert 2.0**-21 * mechanism.deviation < spacing <= 2.0**-20 * mechanism.deviation
    gradient = [torch.randn(1000, dtype=torch.float64), torch.randn(10, 3)]
    clipped = mechanism.clip(gradient)
    assert clipped is not None
    noise = entropy.noise(1000, mechanism.deviation)
    for values in (*clipped, noise):
        assert torch.equal(values / spacing, (values / spacing).round())
    assert torch.equal((clipped[0] + noise) - noise, clipped[0])
    assert float(torch.cat([part.flatten() for part in clipped]).norm()) <= C
    np.testing.assert_allclose(
        clipped[0],
        gradient[0] * (C / np.linalg.norm(np.concatenate([g.numpy().ravel() for g in gradient]))),
        rtol=1e-6,
        atol=spacing,
    )


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
        private.train(unet, sampler, start, 1, mechanism, lambda _step: None)[0]  # type: ignore[arg-type]
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


def test_a_buffer_that_training_changes_does_not_leave(unet: Bench) -> None:
    """Also where nobody tried the network before."""
    bench = replace(unet, model=_Counts(unet.model))
    start = params.from_model(bench.model)
    with pytest.raises(PolicyRefusal, match="the buffer 'mean'"):
        private.train(
            bench,
            Patients([_discs(1)]),
            start,
            1,
            _mechanism(sampling_rate=1.0, patients=1),
            lambda _step: None,
        )  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "transfer", [{"freeze": ["*0.conv*"]}, {"train": "head"}, {"lora": {"rank": 2, "targets": ["*conv*"]}}]
)
def test_what_is_frozen_has_neither_noise_nor_a_share_of_the_norm(transfer: dict[str, Any]) -> None:
    """The clipped gradient is that of the trained parameters together, and nothing else leaves."""
    asked = Experiment.model_validate(experiment().model_dump() | {"transfer": transfer})
    bench = bench_for(asked.order_text())
    start = params.from_model(bench.model)
    trained = [parameter for parameter in bench.model.parameters() if parameter.requires_grad]
    assert 0 < len(trained) < len(list(bench.model.parameters()))
    change, _ = private.train(
        bench, Patients([_discs(1)]), start, 1, _mechanism(patients=1), lambda _step: None
    )  # type: ignore[arg-type]
    assert sum(array.size for array in change.values()) == sum(parameter.numel() for parameter in trained)
    after = params.from_model(bench.model)
    assert all(after[name].tobytes() == start[name].tobytes() for name in start.keys() - change.keys())
    large = _mechanism(clipping_norm=1e-3)
    clipped = clipped_sum(bench, trained, large, [_discs(2)])
    length = float(torch.cat([part.flatten() for part in clipped]).norm())
    assert length == pytest.approx(1e-3, rel=1e-4)


def test_the_sum_is_that_of_each_patient_alone(unet: Bench) -> None:
    parameters = list(unet.model.parameters())
    patients = [_discs(1), _discs(2, count=1), _discs(3, count=5)]
    together = clipped_sum(unet, parameters, _mechanism(), patients)
    alone = [clipped_sum(unet, parameters, _mechanism(), [one]) for one in patients]
    for total, *parts in zip(together, *alone, strict=True):
        torch.testing.assert_close(total, sum(parts), rtol=0, atol=1e-6)


def test_without_noise_and_clipping_a_federated_step_is_the_step_on_the_pooled_patients() -> None:
    """Two sites of three and five patients, all drawn, averaged by their numbers of patients."""
    sgd = {"optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.0, "learning_rate": 0.3}
    bench = bench_for(experiment(train=sgd).order_text())
    patients = [_discs(number) for number in range(8)]
    start = params.from_model(bench.model)
    free = _mechanism(clipping_norm=1e9, noise_multiplier=0.0, sampling_rate=1.0)
    changes = [
        private.train(bench, Patients(own), start, 1, replace(free, patients=len(own)), lambda _step: None)[0]  # type: ignore[arg-type]
        for own in (patients[:3], patients[3:], patients)
    ]
    mean = params.WeightedMean(start)
    mean.add(changes[0], 3)
    mean.add(changes[1], 5)
    for name, federated in mean.mean().items():
        np.testing.assert_allclose(federated, changes[2][name], rtol=1e-4, atol=1e-7)
    everything = tuple(torch.cat(part) for part in zip(*patients, strict=True))
    params.to_model(start, bench.model)
    parameters = list(bench.model.parameters())
    plain = torch.autograd.grad(bench.task.objective(bench.model, *everything), parameters)
    for (name, _), gradient in zip(bench.model.named_parameters(), plain, strict=True):
        np.testing.assert_allclose(changes[2][name], -0.3 * gradient.numpy(), rtol=1e-3, atol=1e-6)


FOLLOWING = private.Following(quantile=0.5, rate=0.3, charge=0.1, most=5.0)


def test_the_norm_and_the_gradients_together_have_the_noise_that_is_charged() -> None:
    """1 / sigma^2 is the sum of both releases' squared sensitivity over their squared deviation."""
    mechanism = _mechanism(following=FOLLOWING, noise_multiplier=1.7)
    counted = 0.5 * 1.7 / 0.1**0.5
    both = (C / mechanism.deviation) ** 2 + (0.5 / counted) ** 2
    assert both == pytest.approx(1.7**-2)
    without = _mechanism(noise_multiplier=1.7)
    assert mechanism.deviation == pytest.approx(without.deviation / 0.9**0.5)
    moved = [np.log(mechanism.after([]).clipping_norm / C) for _ in range(4000)]
    assert float(np.std(moved)) == pytest.approx(
        0.3 * _clipped_share_deviation(counted / (0.5 * 6)), rel=0.06
    )


def _clipped_share_deviation(deviation: float) -> float:
    """Of a share about 1/2 with normal noise, cut to 0 and 1."""
    draws = np.random.default_rng(0).normal(0.5, deviation, 400_000)
    return float(np.std(draws.clip(0, 1)))


def test_the_norm_follows_the_quantile_of_lengths_and_stays_below_its_bound() -> None:
    lengths = np.linspace(0.1, 2.0, 41).tolist()
    free = _mechanism(following=FOLLOWING, patients=41, sampling_rate=1.0, noise_multiplier=0.5)
    for start in (0.01, 5.0):
        mechanism, seen = replace(free, clipping_norm=start), []
        for _ in range(300):
            mechanism = mechanism.after(lengths)
            seen.append(mechanism.clipping_norm)
        assert np.mean(seen[-150:]) == pytest.approx(np.median(lengths), rel=0.15)
    long = replace(free, clipping_norm=4.9)
    for _ in range(200):
        long = long.after([1e9] * 41)
        assert long.clipping_norm <= FOLLOWING.most
    assert _mechanism().after([1.0]) == _mechanism()


def test_lengths_are_of_those_who_count(unet: Bench) -> None:
    lengths: list[float] = []
    parameters = list(unet.model.parameters())
    clipped_sum(unet, parameters, _mechanism(), [_discs(5), HOSTILE["NaN"], _discs(6)], lengths=lengths)
    assert len(lengths) == 2
    assert all(length > 0 for length in lengths)


@pytest.mark.parametrize("noise_multiplier", [0.01, 0.3, 1.3, 400.0])
@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1.0, 1e20, 1e30, 3e37])
def test_cut_to_the_grid_nobody_is_longer_than_the_norm(noise_multiplier: float, scale: float) -> None:
    """In single precision and, where the grid is too fine or a gradient extreme, in double."""
    mechanism = _mechanism(noise_multiplier=noise_multiplier)
    gradient = torch.randn(50_000).clamp_(-3, 3) * scale
    length = private.length_of([gradient])
    cut = mechanism.in_grid(gradient, length).double()
    assert torch.equal(cut, cut.round())
    assert float(cut.norm()) * mechanism.spacing <= C
    if length > C:
        lost = mechanism.spacing * len(gradient) ** 0.5
        assert float(cut.norm()) * mechanism.spacing >= C * (1 - 2e-6) - lost
