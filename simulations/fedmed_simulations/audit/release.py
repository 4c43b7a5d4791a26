"""Attacks on the release path itself, from inside: a patient made for it, and many patients made for it in one run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from fedmed_client.patient_gradients import Samples, flattened
from fedmed_client.private import Mechanism, clipped_sum
from fedmed_client.workbench import Bench
from fedmed_common import privacy
from fedmed_common.privacy import Spent
from fedmed_simulations.audit.bounds import epsilon_of_guesses, separation

_RELEASES, _CANARIES, _MOST_STEPS = 3000, 1000, 500
_GUESSED = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Canary:
    """``moved``: by how much of C one patient moved the sum. ``separation``: of releases with and without, from below;
    ``claimed``: what it is by the noise, 1 / sigma."""

    moved: float
    separation: float
    claimed: float

    @property
    def alarm(self) -> bool:
        """Whether the mechanism is not what it says."""
        return self.moved > 1.0001 or self.separation > self.claimed


def _summed(bench: Bench, mechanism: Mechanism, patients: Sequence[Samples]) -> list[torch.Tensor]:
    trained = bench.parameters
    return clipped_sum(bench, trained, mechanism, patients)


def canary(
    bench: Bench,
    mechanism: Mechanism,
    others: Sequence[Samples],
    hostile: Samples,
    summed: Callable[[Bench, Mechanism, Sequence[Samples]], list[torch.Tensor]] = _summed,
    releases: int = _RELEASES,
) -> Canary:
    """Release the sum of some patients many times, with and without one who is made to be seen, and look for that one.

    What is looked at is the component of the sum along what the patient adds, which the product's own ``release`` hides.
    ``summed``: in the place of :func:`fedmed_client.private.clipped_sum`.
    """
    without, with_it = (
        flattened(summed(bench, mechanism, some)).cpu() for some in (others, [*others, hostile])
    )
    added = with_it - without
    length = float(added.norm())
    along = added / length if length else torch.zeros_like(added)
    counted = mechanism.sampling_rate * mechanism.patients
    samples = [
        np.array(
            [float(mechanism.release([(total @ along).reshape(1)])[0]) * counted for _ in range(releases)]
        )
        for total in (without, with_it)
    ]
    return Canary(
        moved=length / mechanism.clipping_norm,
        separation=separation(*samples),
        claimed=1.0 / mechanism.noise_multiplier,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class OneRun:
    """``epsilon``: the least that explains how many of the ``guesses`` were ``right``; ``claimed``: by the accountant, over as
    many ``steps``."""

    epsilon: float
    claimed: float
    guesses: int
    right: int
    steps: int

    @property
    def alarm(self) -> bool:
        """Whether more is known than can be."""
        return self.epsilon > self.claimed


def one_run(
    mechanism: Mechanism, steps: int, delta: float, canaries: int = _CANARIES, seed: int = 0
) -> OneRun:
    """Train once on patients each of whom moves a coordinate of their own, in or out by a coin; then guess who was in.

    The best case of an attacker: long gradients, nobody in anybody's way, and every release seen. Guessed is the tenth of which
    one is surest.
    """
    steps = min(steps, _MOST_STEPS)
    rng = np.random.default_rng(seed)
    inside = np.flatnonzero(rng.random(canaries) < 0.5)
    own = replace(mechanism, patients=len(inside))
    (clipped,) = own.clip([torch.full((1,), 10 * own.clipping_norm)]) or [torch.zeros(1)]
    seen = torch.zeros(canaries, dtype=torch.float64)
    for _ in range(steps):
        total = torch.zeros(canaries, dtype=torch.float64)
        total[inside[own.choose()]] = clipped.item()
        seen += own.release([total])[0]
    order = np.argsort(seen.numpy())
    half = max(1, int(_GUESSED * canaries / 2))
    member = np.isin(np.arange(canaries), inside)
    right = int(member[order[-half:]].sum() + (~member[order[:half]]).sum())
    spent = Spent(noise_multiplier=own.noise_multiplier, sampling_rate=own.sampling_rate, steps=steps)
    return OneRun(
        epsilon=epsilon_of_guesses(canaries, 2 * half, right, delta),
        claimed=privacy.epsilon([spent], delta),
        guesses=2 * half,
        right=right,
        steps=steps,
    )
