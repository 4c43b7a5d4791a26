"""How long sites would take, in a simulation, which has no time of its own: the unit is one step of a site of median speed.

Drawn from the experiment's seed, so that a simulated run takes the same course each time, on any machine and engine.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from fedmed_common.config import Experiment
from fedmed_server.channel import Member
from fedmed_strategies.recipe import Recipe

_PACE = 0x9ACE
_OF_AN_ORDER = 0.25


def of_order(experiment: Experiment, member: Member, number: int) -> float:
    """The time that a site takes for its training order of round ``number``: its steps, times its own pace, which is log-normal
    with deviation ``simulation.pace_spread``; times what this order has of its own, with a quarter of that.
    """
    steps = experiment.train.steps_of(member.facts.patients["train"])
    spread = 0.0 if experiment.simulation is None else experiment.simulation.pace_spread
    if not spread:
        return float(steps)
    name = int.from_bytes(member.name.encode())
    of_site = np.random.default_rng([experiment.seed, _PACE, name]).normal()
    of_order = np.random.default_rng([experiment.seed, _PACE, name, number]).normal()
    return steps * math.exp(spread * (of_site + _OF_AN_ORDER * of_order))


def of_round(experiment: Experiment, members: Sequence[Member], number: int) -> float:
    """The time of a round in which all wait for the slowest."""
    return max((of_order(experiment, member, number) for member in members), default=0.0)


def is_told(experiment: Experiment, recipe: Recipe) -> bool:
    """Whether a run's records say it: of a simulation in which it says more than the number of rounds."""
    simulation = experiment.simulation
    return simulation is not None and (simulation.pace_spread > 0 or recipe.buffered is not None)
