"""Attacks find what is wrong with a release, and nothing where nothing is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from private_sites import WIDTH, line_bench, patient, unit
from torch import Tensor

from fedmed_client.patient_gradients import Samples
from fedmed_client.private import Mechanism, clipped_sum
from fedmed_client.workbench import Bench, bench_for
from fedmed_common import privacy
from fedmed_common.config import Experiment
from fedmed_common.privacy import Spent
from fedmed_simulations.audit.bounds import epsilon_of_guesses, most_advantage, separation
from fedmed_simulations.audit.inversion import gradient, invert, likeness
from fedmed_simulations.audit.membership import membership
from fedmed_simulations.audit.release import canary, one_run

PLAIN = Mechanism(clipping_norm=1.0, noise_multiplier=1.0, sampling_rate=0.25, patients=16)
OTHERS = [patient(torch.randn(WIDTH, generator=torch.Generator().manual_seed(n)) * 3) for n in range(3)]
HOSTILE = patient(*[unit(0, 50.0)] * 8)


@dataclass(frozen=True, slots=True, kw_only=True)
class Silent(Mechanism):
    """Forgets the noise."""

    def release(self, total: Sequence[Tensor]) -> list[Tensor]:
        return [part / (self.sampling_rate * self.patients) for part in total]


@dataclass(frozen=True, slots=True, kw_only=True)
class Half(Mechanism):
    """Adds half of it."""

    def release(self, total: Sequence[Tensor]) -> list[Tensor]:
        return Mechanism.release(_plain(self, noise_multiplier=self.noise_multiplier / 2), total)


@dataclass(frozen=True, slots=True, kw_only=True)
class ByTheBatch(Mechanism):
    """Scales the noise by how many were drawn, all of them here."""

    def release(self, total: Sequence[Tensor]) -> list[Tensor]:
        drawn = len(OTHERS) + 1
        return Mechanism.release(_plain(self, noise_multiplier=self.noise_multiplier / drawn), total)


def _plain(mechanism: Mechanism, **changes: Any) -> Mechanism:
    fields = {name: getattr(mechanism, name) for name in Mechanism.__dataclass_fields__}
    return Mechanism(**{**fields, **changes})


def _as(kind: type[Mechanism]) -> Mechanism:
    return kind(**{name: getattr(PLAIN, name) for name in Mechanism.__dataclass_fields__})


def _clipped_by_slice(bench: Bench, mechanism: Mechanism, patients: Sequence[Samples]) -> list[Tensor]:
    slices = [tuple(part[n : n + 1] for part in one) for one in patients for n in range(len(one[0]))]
    return clipped_sum(bench, list(bench.model.parameters()), mechanism, slices)  # type: ignore[arg-type]


def test_a_right_release_gives_no_alarm() -> None:
    found = canary(line_bench(), PLAIN, OTHERS, HOSTILE)
    assert not found.alarm
    assert found.moved <= 1.0001
    assert 0.6 < found.separation <= 1.0


@pytest.mark.parametrize("kind", [Silent, Half, ByTheBatch])
def test_too_little_noise_alarms(kind: type[Mechanism]) -> None:
    found = canary(line_bench(), _as(kind), OTHERS, HOSTILE)
    assert found.alarm
    assert found.separation > 1.3


def test_clipping_each_slice_in_the_place_of_the_patient_alarms() -> None:
    found = canary(line_bench(), PLAIN, OTHERS, HOSTILE, summed=_clipped_by_slice)
    assert found.alarm
    assert found.moved > 7.9


@pytest.mark.parametrize(("sigma", "rate", "steps"), [(6.0, 0.5, 50), (2.5, 0.1, 60)])
def test_one_run_stays_below_the_accountant_and_alarms_without_noise(
    sigma: float, rate: float, steps: int
) -> None:
    mechanism = replace(PLAIN, noise_multiplier=sigma, sampling_rate=rate)
    found = one_run(mechanism, steps, 1e-5)
    assert found.claimed == privacy.epsilon(
        [Spent(noise_multiplier=sigma, sampling_rate=rate, steps=steps)], 1e-5
    )
    assert found.claimed <= 6
    assert not found.alarm
    silent = replace(_as(Silent), noise_multiplier=sigma, sampling_rate=rate)
    assert one_run(silent, steps, 1e-5).alarm == (found.claimed < 5)
    assert one_run(silent, steps, 1e-5).epsilon > 2.9


def test_bounds_from_guesses_hold_and_grow() -> None:
    assert epsilon_of_guesses(1000, 100, 50, 1e-5) == 0.0
    found = [epsilon_of_guesses(1000, 100, right, 1e-5) for right in (60, 75, 90, 100)]
    assert found == sorted(found)
    assert 0.6 < found[1] < np.log(3)
    assert most_advantage(0.0, 0.0) == 0.0
    assert most_advantage(1.0, 0.0) == pytest.approx((np.e - 1) / (np.e + 1))
    assert most_advantage(1000.0, 0.0) == 1.0
    rng = np.random.default_rng(0)
    assert separation(rng.normal(size=4000), rng.normal(size=4000)) == pytest.approx(0.0, abs=0.02)
    assert 0.8 < separation(rng.normal(size=4000), rng.normal(1.0, size=4000)) <= 1.0


def _image(seed: int) -> Samples:
    """A bright blob on a dark one, as an organ in a slice."""
    rows, columns = np.mgrid[:32, :32]
    rng = np.random.default_rng(seed)
    image = np.zeros((32, 32))
    for height in (1.0, -0.8, 0.6):
        y, x, r = *rng.uniform(8, 24, 2), rng.uniform(3, 7)
        image += height * np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / (2 * r**2))
    image = (image - image.mean()) / image.std()
    pixels = torch.from_numpy(image.astype(np.float32))[None, None]
    return pixels, (pixels[:, 0] > 1).long(), torch.ones(1, 1, dtype=torch.bool)


def test_images_are_seen_in_a_step_in_the_clear_and_not_in_a_private_one() -> None:
    experiment = Experiment.model_validate(
        {
            "name": "inversion",
            "rounds": 1,
            "task": {"classes": ["bright"], "dimensions": 2},
            "data": {"patch": [32, 32]},
            "model": {"channels": [8, 16], "residual_units": 0},
            "train": {"steps": 1, "batch_size": 1, "threads": 1},
        }
    )
    bench = bench_for(experiment.order_text())
    bench.model.eval()
    clear, private = [], []
    for number in range(3):
        sample = _image(number)
        sent = [part.detach() for part in gradient(bench, sample)]
        clear.append(likeness(sample[0], invert(bench, sent, sample)))
        clipped = PLAIN.clip(sent)
        assert clipped is not None
        private.append(likeness(sample[0], invert(bench, PLAIN.release(clipped), sample)))
    assert np.mean(clear) > 0.7
    assert np.mean(private) < 0.2


def test_membership_is_told_where_losses_differ_and_not_where_they_do_not() -> None:
    rng = np.random.default_rng(1)
    same = membership(rng.normal(size=200), rng.normal(size=200))
    assert same.low < 0.5 < same.high
    apart = membership(rng.normal(0.0, 1, 200), rng.normal(2.0, 1, 200))
    assert apart.auroc > 0.85
    assert apart.advantage > 0.55
    assert membership([1.0, 1.0], [1.0]).auroc == 0.5
