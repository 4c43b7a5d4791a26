"""A survey: the sums that a recipe's statistics are, asked of all sites once, and nothing trained."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fedmed_common import privacy
from fedmed_common.params import Parameters
from fedmed_server.channel import Channel, Member
from fedmed_server.cohort import check_quorum
from fedmed_server.federation import ask, total
from fedmed_server.history import missed
from fedmed_server.survey.sheet import Sheet, sheet_of
from fedmed_strategies.layers import sizes_of
from fedmed_strategies.pieces import under
from fedmed_strategies.recipe import Recipe


def survey(channel: Channel, recipe: Recipe, roster: Sequence[Member], missed_before: Sequence[str]) -> Sheet:
    """What all sites answer; ``missed_before``: who was not there. Asked again after a crash, a site sends what it sealed.

    Raises:
        QuorumError: fewer sites than the experiment's quorum answered.
    """
    experiment, sums = channel.experiment, Parameters()
    answered, lost = {member.name for member in roster}, list(missed_before)
    for statistic in recipe.gathered():
        by_site, results = ask(channel, statistic, roster, {}, 0)
        check_quorum(experiment.federation, results, f"the statistic '{statistic.name}'")
        sums |= under(statistic.name, total(by_site))
        answered &= {result.site for result in results if result.outcome == "ok"}
        lost += missed(results, f"statistic '{statistic.name}'")
    sizes = sizes_of(experiment, channel.model)
    deviation = {
        statistic.name: statistic.noise_multiplier * statistic.sensitivity(sizes) * math.sqrt(len(answered))
        for statistic in recipe.gathered()
    }
    return sheet_of(experiment, channel.run, sums, (deviation, _epsilon(recipe)), (len(answered), lost))


def _epsilon(recipe: Recipe) -> float | None:
    spent = [cost for statistic in recipe.gathered() for cost in statistic.spent]
    delta = max(statistic.delta for statistic in recipe.gathered())
    return privacy.epsilon(spent, delta) if spent else None
