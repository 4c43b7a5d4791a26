"""Rounds of a recipe with a buffer: sites train at once from different versions of the model, and each few updates are a step."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

from fedmed_common import failpoints, wire
from fedmed_common.params import Parameters, is_statistic
from fedmed_server import simulated_time
from fedmed_server.channel import Channel, Member
from fedmed_server.cohort import check_quorum, chosen, too_few, trainers
from fedmed_server.exchange import Answer
from fedmed_server.federation import Federation, Trained, stepped
from fedmed_server.flower_strategies import FlowerRound
from fedmed_server.history import SiteResult, missed
from fedmed_server.standing import STALE, Standing, stale
from fedmed_server.state import Outstanding, RunState
from fedmed_strategies.pieces import Answer as Counted
from fedmed_strategies.recipe import Recipe
from fedmed_strategies.server_half import Round

_MOST_PAUSE_SECONDS, _PAUSE_TIMES = 1.0, 2.0


class Buffering:
    """The training of such rounds. A round is a step of the server; what a site is sent between two steps is of the later one.

    All that the next round needs is in the run's state: who is at work on what, and the versions of the model that they began
    from. An order that a run did not live to see answered is asked again as it was, so that a site that has the answer
    gives it. A simulation decides by its own clock who is next; deployed sites are taken as they come. What is at work when the
    last step is done is left.
    """

    def __init__(self, channel: Channel, recipe: Recipe, roster: Sequence[Member]) -> None:
        assert recipe.buffered is not None  # noqa: S101
        self._channel, self._recipe, self._buffered = channel, recipe, recipe.buffered
        self._roster = tuple(roster)
        self._members = {member.name: member for member in trainers(roster)}
        self._orders: dict[int, Standing] = {}
        self._clock = 0.0

    def train(self, state: RunState) -> Trained:
        """Ask the sites that are free, collect updates until the buffer is full, step.

        Raises:
            QuorumError: too many sites failed, or there are fewer than the buffer holds.
        """
        number = state.round + 1
        size, at_once = self._sizes()
        self._clock = state.clock
        at_work = self._at_work(state)
        at_work |= self._ask(state, at_once, at_work)
        federation = Federation.at(self._channel, self._recipe, self._roster, state, number)
        collecting = federation.round()
        results, aggregate_seconds = self._collect(federation, collecting, state, at_work, size)
        lost = missed(results, f"training of round {number}")
        fresh = [result for result in results if result.code != STALE]
        check_quorum(self._channel.experiment.federation, fresh, f"round {number}")
        before = time.perf_counter()
        new = stepped(self._channel.experiment, state, collecting, lost)
        aggregate_seconds += time.perf_counter() - before
        if number == self._channel.experiment.rounds:
            at_work.clear()
        self._let_go(at_work, number + 1)
        used = {order.round for order in at_work.values() if not self._is_stale(order, number + 1)}
        new = replace(
            new,
            outstanding=tuple(at_work[name] for name in sorted(at_work)),
            versions={began: self._version(state, began) for began in sorted(used)},
            clock=self._clock,
        )
        return Trained(state=new, results=tuple(results), aggregate_seconds=aggregate_seconds)

    def _collect(
        self,
        federation: Federation,
        collecting: Round | FlowerRound,
        state: RunState,
        at_work: dict[str, Outstanding],
        size: int,
    ) -> tuple[list[SiteResult], float]:
        """Add updates until there are ``size``; who has answered is out of ``at_work``. How they did, and the time of adding."""
        number, usable, seconds = state.round + 1, 0, 0.0
        results: list[SiteResult] = []
        for order, answer in self._answers(at_work, number, size):
            staleness = number - order.round
            results.append(answer.result.model_copy(update={"staleness": staleness}))
            if answer.reply is not None:
                before = time.perf_counter()
                counted = replace(federation.answer(answer), staleness=staleness)
                collecting.add(rebased(counted, self._version(state, order.round), state.parameters))
                usable += 1
                seconds += time.perf_counter() - before
                failpoints.reach("aggregating", round=number, site=answer.member.name)
            del answer
            if usable == size:
                break
        return results, seconds

    def _version(self, state: RunState, number: int) -> Parameters:
        """The part that training changes of what orders of round ``number`` began from."""
        newest = number == state.round + 1
        return self._channel.updated(state.parameters) if newest else state.versions[number]

    def _sizes(self) -> tuple[int, int]:
        size, at_once = self._buffered.sizes(len(self._members))
        if self._buffered.buffer is None:
            size = max(size, self._channel.experiment.federation.minimum_sites)
        if size > at_once:
            raise too_few(
                f"{len(self._members)} sites can train, {at_once} of them at once, and a step is to have {size} updates "
                "(recipe.settings.buffered)"
            )
        return size, at_once

    def _at_work(self, state: RunState) -> dict[str, Outstanding]:
        """By name of the site what it is at work on. Where the run goes on, it is asked again."""
        at_work = {order.site: order for order in state.outstanding if order.site in self._members}
        if self._orders:
            for orders in self._orders.values():
                orders.guard()
            return at_work
        numbers = {order.round for order in at_work.values() if not self._is_stale(order, state.round + 1)}
        for number in sorted(numbers):
            of_version = [order for order in at_work.values() if order.round == number]
            parameters = {**state.parameters, **state.versions[number]}
            self._send(state, parameters, of_version)
        return at_work

    def _ask(self, state: RunState, at_once: int, at_work: dict[str, Outstanding]) -> dict[str, Outstanding]:
        """Send those of the free sites that are drawn the newest version."""
        number, experiment = state.round + 1, self._channel.experiment
        free = [member for name, member in self._members.items() if name not in at_work]
        asked = {}
        for member in chosen(free, max(0, at_once - len(at_work)), [experiment.seed, number]):
            due = self._clock + simulated_time.of_order(experiment, member, number)
            asked[member.name] = Outstanding(site=member.name, round=number, best=state.best_round, due=due)
        if asked:
            self._send(state, state.parameters, list(asked.values()))
        return asked

    def _send(self, state: RunState, parameters: Parameters, orders: Sequence[Outstanding]) -> None:
        """Send orders of one version."""
        number, best = orders[0].round, orders[0].best
        federation = Federation.at(self._channel, self._recipe, self._roster, state, number)
        members = [self._members[order.site] for order in orders]
        order = replace(self._channel.order(wire.Kind.TRAIN, number), best=best)
        agreed = state.agreed if parameters is state.parameters else None
        extras = replace(federation.extras(), agreed=agreed)
        self._orders[number] = Standing(self._channel, members, order, parameters, extras)
        self._orders[number].begin()

    def _answers(
        self, at_work: dict[str, Outstanding], number: int, size: int
    ) -> Iterator[tuple[Outstanding, Answer]]:
        """Answers, each with its order, which is then out of ``at_work``, until nobody is at work."""
        if self._channel.expected is None:
            return self._by_clock(at_work, number, size)
        return self._as_they_come(at_work, number)

    def _by_clock(
        self, at_work: dict[str, Outstanding], number: int, size: int
    ) -> Iterator[tuple[Outstanding, Answer]]:
        """As many as are wanted of those that are done first, in roster order: a sum does not show who was faster."""
        usable = 0
        while at_work:
            next_ones = sorted(at_work.values(), key=lambda order: (order.due, order.site))[: size - usable]
            self._clock = max(self._clock, next_ones[-1].due)
            for order in sorted(next_ones, key=lambda order: order.site):
                del at_work[order.site]
                answer = self._gone(order) if self._is_stale(order, number) else self._answer_of(order)
                usable += answer.reply is not None
                yield order, answer
                del answer

    def _as_they_come(
        self, at_work: dict[str, Outstanding], number: int
    ) -> Iterator[tuple[Outstanding, Answer]]:
        for order in [order for order in at_work.values() if order.round not in self._orders]:
            yield at_work.pop(order.site), self._gone(order)  # too old when the run went on
        while at_work:
            self._channel.check_stop()
            began = time.monotonic()
            answer = next(filter(None, (orders.first() for orders in list(self._orders.values()))), None)
            if answer is not None:
                yield at_work.pop(answer.member.name), answer
                del answer
            else:
                took = min(time.monotonic() - began, _MOST_PAUSE_SECONDS)
                self._channel.pause(_PAUSE_TIMES * took)

    def _answer_of(self, order: Outstanding) -> Answer:
        return self._orders[order.round].of(order.site)

    def _gone(self, order: Outstanding) -> Answer:
        member = self._members[order.site]
        return Answer(member=member, result=stale(member), reply=None)

    def _is_stale(self, order: Outstanding, number: int) -> bool:
        """Whether step ``number`` does not use the order's update any more."""
        return number - order.round > self._buffered.most_staleness

    def _let_go(self, at_work: dict[str, Outstanding], number: int) -> None:
        """Forget versions on which nobody is at work, and those that step ``number`` does not use any more.

        A simulated site does what it was asked for all the same, as it would in a hospital: what it keeps for itself has to
        come out the same on every engine."""
        for began in list(self._orders):
            of_version = [order for order in at_work.values() if order.round == began]
            if of_version and not self._is_stale(of_version[0], number):
                continue
            if self._channel.expected is None:
                for order in of_version:
                    self._answer_of(order)
                of_version = []
            if of_version:
                self._orders[began].let_go()
            else:
                del self._orders[began]


def rebased(answer: Counted, began: Parameters, now: Parameters) -> Counted:
    """The answer with its batch norms' running statistics as changes of the model as it is now: they say how things are at the
    site, and not by how much to move."""
    measured = [name for name in answer.delta if is_statistic(name)]
    if not answer.staleness or not measured:
        return answer
    moved = {name: (began[name] - now[name]) + answer.delta[name] for name in measured}
    return replace(answer, delta={**answer.delta, **moved})
