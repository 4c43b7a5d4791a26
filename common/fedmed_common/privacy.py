"""What differential privacy costs: the epsilon of what was spent, and the noise that keeps to an epsilon.

Everything here is about the Gaussian mechanism on a Poisson sample: each of a site's training patients takes part in a step
with chance q; what each adds has a length of C at most; noise of deviation sigma x C is added to the sum. Neighbours differ by
one patient who is there or not. Many steps compose by the privacy loss distribution (Gopi, Lee and Wutschitz 2021, 'Numerical
composition of differential privacy', NeurIPS) or by Renyi divergences (Mironov 2017, 'Renyi differential privacy', CSF; Mironov,
Talwar and Zhang 2019, 'Renyi differential privacy of the sampled Gaussian mechanism'), as Opacus computes them. Both are upper
bounds; the first is the tighter. Accounting by Gaussian differential privacy is an approximation, not a bound, and is not here.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal, TypeAlias

from fedmed_common.config import Experiment, Privacy
from fedmed_common.errors import ConfigError
from fedmed_common.lookup import find
from fedmed_common.task_config import COUPLED_LOSSES

Accountant: TypeAlias = Literal["prv", "rdp"]
_LOOSE_EPSILON, _LARGEST_PRODUCT = 50.0, 6_000.0
_LEAST_SIGMA, _LARGEST_SIGMA = 1e-2, 1e5
_LOOSENESS, _LOOSENESS_OF_SMALL = 1.5, 0.3
"""No Renyi bound was seen to exceed the other by more: where it does so to the target, no noise so small is tried in earnest."""


@dataclass(frozen=True, slots=True, order=True, kw_only=True)
class Spent:
    """``steps`` steps with one noise multiplier (sigma) and one sampling rate (q)."""

    noise_multiplier: float
    sampling_rate: float
    steps: int


_History: TypeAlias = tuple[Spent, ...]


def merged(spent: Iterable[Spent]) -> tuple[Spent, ...]:
    """The same with the steps of equal noise and rate added up, in a fixed order: what an accountant needs time for."""
    steps: dict[tuple[float, float], int] = {}
    for part in spent:
        key = part.noise_multiplier, part.sampling_rate
        steps[key] = steps.get(key, 0) + part.steps
    return tuple(
        Spent(noise_multiplier=sigma, sampling_rate=rate, steps=count)
        for (sigma, rate), count in sorted(steps.items())
        if count
    )


def epsilon(spent: Iterable[Spent], delta: float, accountant: Accountant = "prv") -> float:
    """The epsilon that everything in ``spent`` together has at ``delta``; 0 where nothing was spent.

    ``prv`` takes memory with the number of steps and with epsilon: where its answer would be useless (an epsilon over 50) or
    dear, the looser bound of ``rdp`` stands.

    Raises:
        ConfigError: no such accountant.
    """
    find(_ACCOUNTANTS, accountant, field="accountant")
    return _cost(merged(spent), delta, accountant)


def calibrate(
    epsilon: float, delta: float, sampling_rate: float, steps: int, also: tuple[Spent, ...] = ()
) -> float:
    """The least sigma, rounded up to three decimals, whose ``steps`` steps cost no more than ``epsilon`` at ``delta``.

    ``also``: what is spent besides.

    Raises:
        ConfigError: no sigma up to 100000 keeps to it.
    """
    return _calibrated(epsilon, delta, sampling_rate, steps, also)


def noise_multiplier(experiment: Experiment, also: tuple[Spent, ...] = ()) -> float:
    """The sigma of an experiment with ``[privacy]``: what it names, or what keeps ``epsilon`` over all its rounds and the spare.

    ``also``: what its recipe's statistics spend.

    Raises:
        ConfigError: it names too little noise for its epsilon, or no noise is enough.
    """
    settings = settings_of(experiment)
    steps = (experiment.rounds + settings.spare_rounds) * experiment.train.steps
    if settings.noise_multiplier is None:
        return calibrate(settings.epsilon, settings.delta, settings.sampling_rate, steps, also)
    planned = Spent(
        noise_multiplier=settings.noise_multiplier, sampling_rate=settings.sampling_rate, steps=steps
    )
    cost = epsilon([planned, *also], settings.delta)
    if cost > settings.epsilon:
        raise ConfigError(
            f"{settings.noise_multiplier:g} over {steps} steps costs an epsilon of {cost:.2f}, more than privacy.epsilon",
            field="privacy.noise_multiplier",
            fix=f"leave it out, or raise privacy.epsilon to {math.ceil(cost * 100) / 100:g}",
        )
    return settings.noise_multiplier


def check(experiment: Experiment, file: Path | None = None, also: tuple[Spent, ...] = ()) -> None:
    """Refuse what an experiment with ``[privacy]`` cannot have; one without passes. ``file``: where it was read.

    ``also``: what its recipe's statistics spend.

    Raises:
        ConfigError: names the field.
    """
    if experiment.privacy is None:
        return
    if experiment.task.loss in COUPLED_LOSSES:
        raise ConfigError(
            f"'{experiment.task.loss}' is measured over a batch of patients; with [privacy] each patient is alone in theirs",
            file=file,
            field="task.loss",
            fix="use a loss of single samples, as 'dice_ce'",
        )
    try:
        noise_multiplier(experiment, also)
    except ConfigError as error:
        raise ConfigError(error.problem, file=file, field=error.field, fix=error.fix) from None


def settings_of(experiment: Experiment) -> Privacy:
    """An experiment's ``[privacy]``.

    Raises:
        ConfigError: it has none.
    """
    if experiment.privacy is None:
        raise ConfigError("is missing", field="privacy", fix="add [privacy] to the experiment")
    return experiment.privacy


@lru_cache(maxsize=256)
def _cost(history: _History, delta: float, accountant: Accountant) -> float:
    return _ACCOUNTANTS[accountant](history, delta) if history else 0.0


def _prv(history: _History, delta: float) -> float:
    bound = _cost(history, delta, "rdp")
    steps = sum(part.steps for part in history)
    if bound > _LOOSE_EPSILON or bound * math.sqrt(steps) > _LARGEST_PRODUCT:
        return bound
    from opacus.accountants import PRVAccountant

    tight = _opacus(PRVAccountant, history, delta)
    return min(tight, bound) if math.isfinite(tight) else bound


def _rdp(history: _History, delta: float) -> float:
    from opacus.accountants import RDPAccountant

    bound = _opacus(RDPAccountant, history, delta)
    return math.inf if math.isnan(bound) else bound


def _opacus(kind: Callable[[], object], history: _History, delta: float) -> float:
    accountant = kind()
    accountant.history = [(p.noise_multiplier, p.sampling_rate, p.steps) for p in history]  # type: ignore[attr-defined]
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # that the best Renyi order is at the edge of those tried: the bound is looser, and holds
        try:
            return float(accountant.get_epsilon(delta))  # type: ignore[attr-defined]
        except (OverflowError, ValueError, RuntimeError, FloatingPointError):
            return math.nan


_ACCOUNTANTS: dict[str, Callable[[_History, float], float]] = {"prv": _prv, "rdp": _rdp}


@lru_cache(maxsize=64)
def _calibrated(target: float, delta: float, rate: float, steps: int, also: tuple[Spent, ...]) -> float:
    def fits(sigma: float) -> bool:
        planned = [Spent(noise_multiplier=sigma, sampling_rate=rate, steps=steps), *also]
        bound = epsilon(planned, delta, "rdp")
        if bound <= target or bound > _LOOSENESS * target + _LOOSENESS_OF_SMALL:
            return bound <= target
        return epsilon(planned, delta) <= target

    enough = 1.0
    while not fits(enough):
        enough *= 2
        if enough > _LARGEST_SIGMA:
            raise ConfigError(
                f"no noise keeps an epsilon of {target:g} at delta {delta:g} over {steps} steps",
                field="privacy.epsilon",
                fix="raise it, or take fewer rounds and steps or a lower sampling_rate",
            )
    little = enough / 2
    while little > _LEAST_SIGMA and fits(little):
        enough, little = little, little / 2
    while enough - little > 5e-4:
        middle = (enough + little) / 2
        enough, little = (middle, little) if fits(middle) else (enough, middle)
    return math.ceil(enough * 1000) / 1000
