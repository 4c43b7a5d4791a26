"""A region: to its sites a server, to the centre a site. Its sites' answers become one before they go on.

It asks its sites as a server does, by the same exchange and behind the same gate, and what it answers is the mean of their
updates by their patients, and the sums of all else. So the centre's mean over regions is the mean over all sites, but for the
rounding of floats; which recipes that holds for, ``strategies.validity`` says.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from typing import Any

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from fedmed_common import wire
from fedmed_common.errors import ConfigError, FedmedError, Interrupted
from fedmed_common.loading import experiment_from_order
from fedmed_common.metrics import merge
from fedmed_common.models import build_model
from fedmed_server.channel import Channel, Member
from fedmed_server.cohort import call_roll, check_quorum, trainers
from fedmed_server.exchange import Extras, exchange
from fedmed_server.federation import Federation, ask, total
from fedmed_server.history import SiteFacts, SiteResult
from fedmed_server.state import RunState
from fedmed_strategies.layers import layers_of
from fedmed_strategies.pieces import under
from fedmed_strategies.presets import recipe_of
from fedmed_strategies.recipe import Recipe
from fedmed_strategies.server_half import Round, shared
from fedmed_strategies.statistics.base import Statistic

_SPLITS = ("train", "validation", "test")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """A run as a region does its part of it."""

    recipe: Recipe
    channel: Channel
    members: Sequence[Member]


@dataclass(slots=True, kw_only=True)
class Region:
    """One region of a consortium. ``grid``: of its sites, of which there are ``sites``. ``watch``: as in :class:`Channel`."""

    name: str
    grid: Grid
    sites: int
    watch: Callable[[str, str], None] = lambda _site, _phase: None
    stop: threading.Event = field(default_factory=threading.Event)
    _works: dict[str, Work] = field(default_factory=dict)

    def answer(self, order: wire.Order) -> wire.Reply:
        """What the region answers to an order. Its sites are called once in a run, with the centre's roll call.

        Raises:
            QuorumError: too few of its sites answered.
            ConfigError: a site's policy puts noise on what it measures, which has no place in a sum over sites.
        """
        if order.kind is wire.Kind.FACTS or order.run not in self._works:
            self._works = {order.run: self._begin(order)}
        work = self._works[order.run]
        answering = {
            wire.Kind.FACTS: self._facts,
            wire.Kind.TRAIN: self._train,
            wire.Kind.EVALUATE: self._measure,
            wire.Kind.STATISTICS: self._sum,
        }
        return answering[order.kind](work, order)

    def reply(self, order: wire.Order, **told: Any) -> wire.Reply:
        """A reply to the order."""
        return wire.Reply(site=self.name, run=order.run, round=order.round, attempt=order.attempt, **told)

    def _facts(self, work: Work, order: wire.Order) -> wire.Reply:
        sites = [member.facts for member in work.members]
        noised = [site.name for site in sites if site.held_out == "noised"]
        if noised:
            raise ConfigError(
                f"site '{noised[0]}' puts noise on what it measures, which has no place in its region's sum",
                field="policy.held_out",
                fix="set it to 'measured' or 'kept', or leave simulation.regions out",
            )
        facts = wire.Facts(
            patients={split: sum(site.patients[split] for site in sites) for split in _SPLITS},
            presence=_presence(sites),
            version=version("fedmed"),
            withdrawn_from=sum(site.withdrawn_from for site in sites),
        )
        region = wire.Region(asked=len(sites), missed=0, patients=facts.patients["train"])
        return self.reply(order, facts=facts, region=region)

    def _train(self, work: Work, order: wire.Order) -> wire.Reply:
        channel = work.channel
        before = RunState(round=order.round - 1, parameters=order.parameters)
        federation = Federation.at(channel, work.recipe, work.members, before, order.round)
        collecting, results = federation.round(), list[SiteResult]()
        assert isinstance(collecting, Round)  # noqa: S101
        inner = replace(channel.order(wire.Kind.TRAIN, order.round), best=order.best)
        asked = exchange(channel, trainers(work.members), inner, order.parameters, Extras(down=order.down))
        for answer in asked:
            results.append(answer.result)
            if answer.reply is not None:
                collecting.add(federation.answer(answer))
            del answer
        check_quorum(channel.experiment.federation, results, f"round {order.round} in {self.name}")
        return self.reply(order, delta=collecting.combined(), **_told(results))

    def _measure(self, work: Work, order: wire.Order) -> wire.Reply:
        channel = work.channel
        inner = replace(channel.order(wire.Kind.EVALUATE, order.round), split=order.split)
        members = [member for member in work.members if member.facts.patients[order.split]]
        asked = exchange(channel, members, inner, order.parameters, Extras(down=order.down))
        return self.reply(order, **_told([answer.result for answer in asked]))

    def _sum(self, work: Work, order: wire.Order) -> wire.Reply:
        statistic = _statistic(work.recipe, order.statistic)
        by_site, results = ask(work.channel, statistic, work.members, order.parameters, order.round)
        what = f"the statistic '{statistic.name}' in {self.name}"
        check_quorum(work.channel.experiment.federation, results, what)
        sums = under(statistic.name, total(by_site))
        return self.reply(order, sums=sums, **_told(results))

    def _begin(self, order: wire.Order) -> Work:
        experiment = experiment_from_order(order.experiment)
        recipe, model = recipe_of(experiment), build_model(experiment)
        layers = layers_of(model, experiment.model.head, experiment.plan.outputs)
        channel = Channel(
            grid=self.grid,
            experiment=experiment,
            run=order.run,
            watch=self.watch,
            stop=self.stop,
            trained=shared(recipe, layers),
            layers=layers,
            model=model,
        )
        return Work(recipe=recipe, channel=channel, members=call_roll(channel, self.sites).members)


def _told(results: Sequence[SiteResult]) -> dict[str, Any]:
    """What its sites' results come to: their metrics, and how many are missing."""
    good = [result for result in results if result.outcome == "ok"]
    return {
        "metrics": merge(result.means() for result in good),
        "region": wire.Region(
            asked=len(results),
            missed=len(results) - len(good),
            patients=sum(result.patients for result in good),
        ),
    }


def _presence(sites: Sequence[SiteFacts]) -> dict[str, int]:
    """Patients by class over sites. Where a site hides its count, and no other shows the class, it stays hidden."""
    counts: dict[str, list[int]] = {}
    for site in sites:
        for name, count in site.presence.items():
            counts.setdefault(name, []).append(count)
    known = {name: sum(count for count in some if count > 0) for name, some in counts.items()}
    return {name: known[name] or min(some) for name, some in counts.items()}


def _statistic(recipe: Recipe, name: str) -> Statistic:
    found = next((one for one in recipe.asked() if one.name == name), None)
    if found is None:
        raise ConfigError(
            f"the recipe has no statistic '{name}'", field="recipe", fix="use one version everywhere"
        )
    return found


def app_of_regions(regions: Sequence[Region]) -> ClientApp:
    """The ClientApp of regions in one process: the one of node ``partition-id``."""
    client_app = ClientApp()

    def handle(kind: wire.Kind) -> Callable[[Message, Context], Message]:
        def answer(message: Message, context: Context) -> Message:
            region = regions[int(context.node_config["partition-id"])]
            started = time.perf_counter()
            order = wire.unpack_order(message.content, kind)
            try:
                reply = region.answer(order)
            except Interrupted:
                raise
            except FedmedError as error:
                _log.warning("%s: %s", region.name, error)
                reply = region.reply(order, code=error.code)
            reply = replace(reply, seconds={"site": time.perf_counter() - started})
            return Message(wire.pack_reply(reply), reply_to=message)

        return answer

    client_app.query("facts")(handle(wire.Kind.FACTS))
    client_app.query("statistics")(handle(wire.Kind.STATISTICS))
    client_app.train()(handle(wire.Kind.TRAIN))
    client_app.evaluate()(handle(wire.Kind.EVALUATE))
    return client_app
