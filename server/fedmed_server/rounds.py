"""The round loop, a generator: the caller decides what to record and when to stop."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Literal

from fedmed_common import failpoints, wire
from fedmed_common.metrics import class_mean, merge, score_called
from fedmed_common.params import Parameters
from fedmed_common.tasks import Decision
from fedmed_server.agreement import Agreed, agree
from fedmed_server.channel import Channel, Member
from fedmed_server.cohort import check_quorum, draw
from fedmed_server.exchange import Extras, exchange
from fedmed_server.federation import Federation, apply_stages, gather, stages_began
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


def rounds(
    channel: Channel, recipe: Recipe, roster: Sequence[Member], state: RunState
) -> Iterator[RoundResult]:
    """Run the rounds that are left, one per iteration.

    Raises:
        QuorumError: fewer sites than the experiment's quorum gave a usable update.
    """
    state = gather(channel, recipe, roster, state)
    while state.round < channel.experiment.rounds:
        result = run_round(channel, recipe, roster, state)
        yield result
        state = result.state


def run_round(channel: Channel, recipe: Recipe, roster: Sequence[Member], state: RunState) -> RoundResult:
    """One round: draw sites, train, aggregate in roster order, step; where due, apply the recipe's stages and evaluate."""
    started = time.perf_counter()
    number = state.round + 1
    order = replace(_order(channel, wire.Kind.TRAIN, number), best=state.best_round)
    federation = Federation.at(channel, recipe, roster, state, number)
    collecting = federation.round()
    trained: list[SiteResult] = []
    aggregate_seconds = 0.0
    drawn = draw(roster, channel.experiment, number)
    extras, secret = replace(federation.extras(), agreed=state.agreed), None
    settings = channel.experiment.secure_aggregation
    if settings is not None:
        secret = SecureSum(channel, order)
        drawn = tuple(secret.agree(drawn))
        trained += secret.lost
        layout = federation.layout(settings, len(drawn))
        extras = replace(extras, secure=secret.wanted, masked=layout.length)
    answers = exchange(channel, drawn, order, state.parameters, extras)
    for answer in answers if secret is None else map(secret.take, answers):
        trained.append(answer.result)
        if answer.reply is not None:
            before = time.perf_counter()
            collecting.add(federation.answer(answer))
            aggregate_seconds += time.perf_counter() - before
            failpoints.reach("aggregating", round=number, site=answer.member.name)
        del answer
    lost = missed(trained, f"training of round {number}")
    check_quorum(channel.experiment.federation, trained, f"round {number}")
    before = time.perf_counter()
    if secret is not None and secret.party is not None and isinstance(collecting, SecureRound):
        secret.check(collecting.open(secret.open(drawn, layout), secret.party), federation.norm_limit)
    changed, memory = collecting.finish()
    parameters, agreed, left = agree(
        channel.experiment, state.parameters, changed, state.memory, state.agreed
    )
    trained_at = time.perf_counter()
    aggregate_seconds += trained_at - before
    new = replace(
        state,
        round=number,
        parameters=parameters,
        released=None,
        decision={},
        memory={**memory, **left},
        agreed=agreed,
        missed=state.missed + lost,
    )
    evaluation: tuple[SiteResult, ...] = ()
    criterion: float | None = None
    if channel.evaluates(number):
        new = apply_stages(channel, recipe, roster, new)
        evaluation = evaluate(channel, roster, Measured.last(new), "validation")
        new = replace(new, missed=new.missed + missed(evaluation, f"evaluation of round {number}"))
        criterion = _criterion(channel, evaluation)
        is_first = stages_began(recipe, state.best_round, number, channel.experiment.rounds)
        if criterion is not None and (is_first or _is_better(channel, evaluation, state)):
            new = replace(new, best_round=number, best_parameters=new.model, best_decision=new.decision)
    finished = time.perf_counter()
    record = RoundDone(
        time=now(),
        round=number,
        attempt=0,
        train=tuple(trained),
        evaluation=evaluation,
        criterion=criterion,
        is_best=new.best_round == number,
        seconds={
            "train": trained_at - started - aggregate_seconds,
            "aggregate": aggregate_seconds,
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


def evaluate(
    channel: Channel, roster: Sequence[Member], model: Measured, split: Literal["validation", "test"]
) -> tuple[SiteResult, ...]:
    """Every site that has patients in the split measures the model on them."""
    members = [member for member in roster if member.facts.patients[split]]
    order = replace(_order(channel, wire.Kind.EVALUATE, model.round), split=split)
    extras = Extras(down=under(wire.DECISION, model.decision), agreed=model.agreed)
    return tuple(answer.result for answer in exchange(channel, members, order, model.parameters, extras))


def now() -> str:
    """This moment, ISO 8601 in UTC."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _order(channel: Channel, kind: wire.Kind, number: int) -> wire.Order:
    return wire.Order(
        kind=kind, run=channel.run, round=number, attempt=0, experiment=channel.experiment.order_text()
    )


def _criterion(channel: Channel, evaluation: Sequence[SiteResult]) -> float | None:
    value = class_mean(merge(result.means() for result in evaluation), channel.experiment.federation.best)
    return None if math.isnan(value) else value


def _is_better(channel: Channel, evaluation: Sequence[SiteResult], state: RunState) -> bool:
    """Whether this is the best round so far, over the sites that answered both: that a hard site was away is no merit."""
    if not state.best_record:
        return True
    before = RoundDone.model_validate_json(state.best_record).evaluation
    both = {result.site for result in evaluation if result.outcome == "ok"}
    both &= {result.site for result in before if result.outcome == "ok"}
    value, best = (
        _criterion(channel, [result for result in results if result.site in both])
        for results in (evaluation, before)
    )
    if value is None or best is None:
        return False
    score = score_called(channel.experiment.federation.best)
    return value <= best if score is not None and score.better == "lower" else value >= best
