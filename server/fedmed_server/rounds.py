"""The round loop, a generator: the caller decides what to record and when to stop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import Literal

from fedmed_common import failpoints, wire
from fedmed_common.metrics import class_mean, merge, score_called
from fedmed_common.params import Parameters
from fedmed_common.tasks import Decision
from fedmed_server import simulated_time
from fedmed_server.agreement import Agreed
from fedmed_server.buffered import Buffering
from fedmed_server.channel import Channel, Member
from fedmed_server.cohort import check_quorum, draw, evaluators
from fedmed_server.exchange import Extras, exchange
from fedmed_server.federation import Federation, Trained, apply_stages, gather, stages_began, stepped
from fedmed_server.history import RoundDone, SiteResult, missed
from fedmed_server.secure import SecureSum
from fedmed_server.state import RunState
from fedmed_strategies.pieces import under
from fedmed_strategies.recipe import Recipe
from fedmed_strategies.server_half import SecureRound


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundResult:
    """What one round leaves behind: the new state and what to record of it."""

    state: RunState
    record: RoundDone


Train = Callable[[RunState], Trained]
"""(state between two rounds) -> what the next round's training makes of it, before anything is measured."""


def rounds(
    channel: Channel, recipe: Recipe, roster: Sequence[Member], state: RunState
) -> Iterator[RoundResult]:
    """Run the rounds that are left, one per iteration.

    Raises:
        QuorumError: fewer sites than the experiment's quorum gave a usable update.
    """
    state = gather(channel, recipe, roster, state)
    train: Train = partial(train_together, channel, recipe, roster)
    if recipe.buffered is not None:
        train = Buffering(channel, recipe, roster).train
    while state.round < channel.experiment.rounds:
        result = run_round(channel, recipe, roster, state, train)
        yield result
        state = result.state


def run_round(
    channel: Channel,
    recipe: Recipe,
    roster: Sequence[Member],
    state: RunState,
    train: Train | None = None,
) -> RoundResult:
    """One round: train, step; where due, apply the recipe's stages and evaluate."""
    started = time.perf_counter()
    trained = train(state) if train is not None else train_together(channel, recipe, roster, state)
    trained_at = time.perf_counter()
    new, evaluation, criterion = _measured(channel, recipe, roster, (state, trained.state))
    finished = time.perf_counter()
    record = RoundDone(
        time=now(),
        round=new.round,
        attempt=0,
        train=trained.results,
        evaluation=evaluation,
        criterion=criterion,
        is_best=new.best_round == new.round,
        clock=new.clock if simulated_time.is_told(channel.experiment, recipe) else None,
        seconds={
            "train": trained_at - started - trained.aggregate_seconds,
            "aggregate": trained.aggregate_seconds,
            "evaluate": finished - trained_at,
            "total": finished - started,
        },
    )
    line = record.model_dump_json()
    best_line = line if record.is_best else state.best_record
    return RoundResult(state=replace(new, record=line, best_record=best_line), record=record)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A model that sites measure: of which round, how its predictions are decided on, and how sites that have the one before
    are sent it."""

    round: int
    parameters: Parameters
    decision: Decision
    agreed: Agreed | None = None

    @classmethod
    def last(cls, state: RunState) -> Measured:
        """The newest."""
        agreed = state.agreed if state.released is None else None
        return cls(round=state.round, parameters=state.model, decision=state.decision, agreed=agreed)


def train_together(channel: Channel, recipe: Recipe, roster: Sequence[Member], state: RunState) -> Trained:
    """Draw sites, have all of them train from the same model, add their updates in roster order, step."""
    number = state.round + 1
    order = replace(channel.order(wire.Kind.TRAIN, number), best=state.best_round)
    federation = Federation.at(channel, recipe, roster, state, number)
    collecting = federation.round()
    results: list[SiteResult] = []
    aggregate_seconds = 0.0
    drawn = draw(roster, channel.experiment, number)
    clock = state.clock + simulated_time.of_round(channel.experiment, drawn, number)
    extras, secret = replace(federation.extras(), agreed=state.agreed), None
    settings = channel.experiment.secure_aggregation
    if settings is not None:
        secret = SecureSum(channel, order)
        drawn = tuple(secret.agree(drawn))
        results += secret.lost
        layout = federation.layout(settings, len(drawn))
        extras = replace(extras, secure=secret.wanted, masked=layout.length)
    answers = exchange(channel, drawn, order, state.parameters, extras)
    for answer in answers if secret is None else map(secret.take, answers):
        results.append(answer.result)
        if answer.reply is not None:
            before = time.perf_counter()
            collecting.add(federation.answer(answer))
            aggregate_seconds += time.perf_counter() - before
            failpoints.reach("aggregating", round=number, site=answer.member.name)
        del answer
    lost = missed(results, f"training of round {number}")
    check_quorum(channel.experiment.federation, results, f"round {number}")
    before = time.perf_counter()
    if secret is not None and secret.party is not None and isinstance(collecting, SecureRound):
        secret.check(collecting.open(secret.open(drawn, layout), secret.party), federation.norm_limit)
    new = stepped(channel.experiment, state, collecting, lost)
    aggregate_seconds += time.perf_counter() - before
    return Trained(
        state=replace(new, clock=clock), results=tuple(results), aggregate_seconds=aggregate_seconds
    )


def _measured(
    channel: Channel, recipe: Recipe, roster: Sequence[Member], states: tuple[RunState, RunState]
) -> tuple[RunState, tuple[SiteResult, ...], float | None]:
    """The state after the round's stages and evaluation, where they are due, what sites measured, and the criterion.

    ``states``: before the round, and after its training."""
    state, new = states
    number = new.round
    if not channel.evaluates(number):
        return new, (), None
    new = apply_stages(channel, recipe, roster, new)
    measuring = evaluators(roster, channel.experiment)
    evaluation = evaluate(channel, measuring, Measured.last(new), "validation")
    new = replace(new, missed=new.missed + missed(evaluation, f"evaluation of round {number}"))
    criterion = _criterion(channel, evaluation)
    is_first = stages_began(recipe, state.best_round, number, channel.experiment.rounds)
    if criterion is not None and (is_first or _is_better(channel, evaluation, state)):
        new = replace(new, best_round=number, best_parameters=new.model, best_decision=new.decision)
    return new, evaluation, criterion


def evaluate(
    channel: Channel, roster: Sequence[Member], model: Measured, split: Literal["validation", "test"]
) -> tuple[SiteResult, ...]:
    """Every site that has patients in the split measures the model on them."""
    members = [member for member in roster if member.facts.patients[split]]
    order = replace(channel.order(wire.Kind.EVALUATE, model.round), split=split)
    extras = Extras(down=under(wire.DECISION, model.decision), agreed=model.agreed)
    return tuple(answer.result for answer in exchange(channel, members, order, model.parameters, extras))


def now() -> str:
    """This moment, ISO 8601 in UTC."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _criterion(channel: Channel, evaluation: Sequence[SiteResult]) -> float | None:
    value = class_mean(merge(result.means() for result in evaluation), channel.experiment.federation.best)
    return None if math.isnan(value) else value


def _is_better(channel: Channel, evaluation: Sequence[SiteResult], state: RunState) -> bool:
    """Whether this is the best round so far, over the sites that answered both: that a hard site was away is no merit."""
    if not state.best_record:
        return True
    before = RoundDone.model_validate_json(state.best_record).evaluation
    both = {result.site for result in evaluation if result.is_whole}
    both &= {result.site for result in before if result.is_whole}
    value, best = (
        _criterion(channel, [result for result in results if result.site in both])
        for results in (evaluation, before)
    )
    if value is None or best is None:
        return False
    score = score_called(channel.experiment.federation.best)
    return value <= best if score is not None and score.better == "lower" else value >= best
