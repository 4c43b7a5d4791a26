"""A recipe in a run: what it adds to each exchange, its statistics before training, and its stages before a model is measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from fedmed_common import wire
from fedmed_common.config import Experiment
from fedmed_common.params import Parameters
from fedmed_common.secure.circle import Party
from fedmed_common.secure.fixed_point import Layout
from fedmed_common.training_config import SecureAggregation
from fedmed_server.agreement import agree
from fedmed_server.channel import Channel, Member
from fedmed_server.cohort import check_quorum
from fedmed_server.exchange import Answer, Extras, exchange
from fedmed_server.flower_strategies import FlowerRound
from fedmed_server.history import SiteResult, missed
from fedmed_server.secure import SecureSum
from fedmed_server.state import RunState
from fedmed_strategies import pieces, secure, server_half
from fedmed_strategies.flower import Flower
from fedmed_strategies.pieces import Layers, Memory, Scene, Site, add_up, own, under
from fedmed_strategies.recipe import Recipe
from fedmed_strategies.statistics.base import Statistic

_ALL_SITES = "all sites"


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """What a round's training leaves: the state with the new parameters, how sites answered, how long adding up took."""

    state: RunState
    results: tuple[SiteResult, ...]
    aggregate_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Federation:
    """A recipe in one round of a run."""

    recipe: Recipe
    scene: Scene
    start: Parameters
    memory: Memory
    norm_limit: float
    sites: Mapping[str, Site]

    @classmethod
    def at(
        cls, channel: Channel, recipe: Recipe, roster: Sequence[Member], state: RunState, number: int
    ) -> Federation:
        """Of round ``number``, from the state before it."""
        scene = scene_of(channel, roster, state, number)
        return cls(
            recipe=recipe,
            scene=scene,
            sites={site.name: site for site in scene.sites},
            start=channel.updated(state.parameters),
            memory=state.memory,
            norm_limit=channel.experiment.federation.update_norm_limit,
        )

    def round(self) -> server_half.Round | FlowerRound:
        """Where answers become new parameters."""
        if isinstance(self.recipe.aggregator, Flower):
            return FlowerRound(self.recipe, self.scene, self.start, self.memory)
        if self.recipe.secure:
            return server_half.SecureRound(self.recipe, self.scene, self.start, self.memory)
        return server_half.Round(self.recipe, self.scene, self.start, self.memory)

    def layout(self, settings: SecureAggregation, sites: int) -> Layout:
        """Of a site's part of the round's secure sum over so many sites."""
        return secure.layout(
            self.recipe,
            settings,
            self.start,
            server_half.sums_of(self.recipe, self.start),
            self.scene.layers.rows,
            len(self.scene.classes),
            self.scene.rate,
            sites,
        )

    def extras(self) -> Extras:
        """What it adds to the training order, and what a reply has to hold besides."""
        return Extras(
            down=server_half.down(self.recipe, self.memory, self.scene),
            down_to=lambda site: server_half.down_to(self.recipe, site, self.memory, self.scene),
            sums={} if self.recipe.secure else server_half.sums_of(self.recipe, self.start),
            sums_limit=lambda _patients: self.norm_limit * max(1.0, 1.0 / self.scene.rate),
            scalars=self.recipe.scalars(),
        )

    def answer(self, answer: Answer) -> pieces.Answer:
        """An admitted answer as the recipe's pieces see it."""
        assert answer.reply is not None  # noqa: S101
        reply = answer.reply
        loss = reply.metrics.get("loss")
        site = self.sites[answer.member.name]
        return pieces.Answer(
            site=site if reply.region is None else replace(site, patients=reply.region.patients),
            delta=reply.delta,
            sums=reply.sums,
            scalars=reply.scalars,
            loss=None if loss is None or math.isnan(loss.value) else loss.value,
        )


def stepped(
    experiment: Experiment,
    state: RunState,
    collecting: server_half.Round | FlowerRound,
    lost: tuple[str, ...],
) -> RunState:
    """The state after the round whose answers were collected; ``lost``: who is missing in it.

    Raises:
        QuorumError: nothing can be made of the answers.
    """
    changed, memory = collecting.finish()
    parameters, agreed, left = agree(experiment, state.parameters, changed, state.memory, state.agreed)
    return replace(
        state,
        round=state.round + 1,
        parameters=parameters,
        released=None,
        decision={},
        memory={**memory, **left},
        agreed=agreed,
        missed=state.missed + lost,
    )


def scene_of(channel: Channel, roster: Sequence[Member], state: RunState, number: int) -> Scene:
    """The round as the recipe's pieces see it."""
    experiment = channel.experiment
    return Scene(
        classes=experiment.task.classes,
        background=experiment.task.name == "segmentation",
        layers=channel.layers or Layers(trained=tuple(state.parameters)),
        sites=_sites(roster, state.memory),
        round=number,
        rounds=experiment.rounds,
        rate=experiment.train.rate_in(max(1, number), experiment.rounds),
        seed=experiment.seed,
        image=(experiment.plan.in_channels, *experiment.plan.patch),
    )


def gather(channel: Channel, recipe: Recipe, roster: Sequence[Member], state: RunState) -> RunState:
    """The state with the statistics that the recipe needs before training; those that it has are not asked for again."""
    for statistic in recipe.gathered():
        if statistic.with_model or any(name.startswith(f"{statistic.name}/") for name in state.memory):
            continue
        by_site, results = ask(channel, statistic, roster, state.parameters, state.round)
        check_quorum(channel.experiment.federation, results, f"the statistic '{statistic.name}'")
        kept = statistic.kept(total(by_site))
        if statistic.of_each_site:
            for site, sums in by_site.items():
                kept |= under(f"site/{site}/{statistic.name}", sums)
        lost = missed(results, f"statistic '{statistic.name}'")
        state = replace(state, memory={**state.memory, **kept}, missed=state.missed + lost)
    return state


def apply_stages(channel: Channel, recipe: Recipe, roster: Sequence[Member], state: RunState) -> RunState:
    """The state with what the recipe's stages make of its parameters, where any is due."""
    due = [s for s in recipe.stages if state.round >= s.begins(channel.experiment.rounds)]
    for stage in due:
        statistic = stage.statistic
        assert isinstance(statistic, Statistic) and channel.model is not None  # noqa: S101
        by_site, results = ask(channel, statistic, roster, state.model, state.round)
        check_quorum(
            channel.experiment.federation, results, f"the statistic '{statistic.name}' of round {state.round}"
        )
        scene = scene_of(channel, roster, state, state.round)
        released, decision = stage.apply(state.model, total(by_site), scene, channel.model)
        state = replace(
            state,
            released=released,
            decision={**state.decision, **decision},
            missed=state.missed + missed(results, f"statistic '{statistic.name}' of round {state.round}"),
        )
    return state


def stages_began(recipe: Recipe, best: int, number: int, rounds: int) -> bool:
    """Whether a stage is due in round ``number`` that was not in the best round so far: the two are not to be compared."""
    return any(best < stage.begins(rounds) <= number for stage in recipe.stages)


def ask(
    channel: Channel, statistic: Statistic, roster: Sequence[Member], parameters: Parameters, number: int
) -> tuple[dict[str, Parameters], list[SiteResult]]:
    """A statistic in round ``number``: by site that answered, its sums, and how all answered."""
    from fedmed_strategies.layers import sizes_of

    order = wire.Order(
        kind=wire.Kind.STATISTICS,
        run=channel.run,
        round=number,
        attempt=0,
        experiment=channel.experiment.order_text(),
        statistic=statistic.name,
    )
    sizes = sizes_of(channel.experiment, channel.model)
    zeros = under(statistic.name, statistic.zeros(sizes))
    sent = parameters if statistic.with_model else None
    members = [member for member in roster if member.facts.patients["train"]]
    count = sum(array.size for array in zeros.values())
    noise = statistic.noise_multiplier * secure.NOISE_SPAN * math.sqrt(max(count, 1))
    extras = Extras(
        sums=zeros,
        sums_limit=lambda patients: statistic.sensitivity(sizes) * (patients + noise) * (1 + 1e-5),
        private=statistic.epsilon is not None,
    )
    if channel.experiment.secure_aggregation is not None:
        extras = replace(extras, sums={})
        return _ask_in_secret(
            channel,
            members,
            extras,
            (order, sent),
            lambda party: secure.statistic_layout(statistic, zeros, statistic.sensitivity(sizes), party),
        )
    by_site, results = dict[str, Parameters](), list[SiteResult]()
    for answer in exchange(channel, members, order, sent, extras):
        results.append(answer.result)
        if answer.reply is not None:
            by_site[answer.member.name] = own(answer.reply.sums, statistic.name)
        del answer
    return by_site, results


def _ask_in_secret(
    channel: Channel,
    members: Sequence[Member],
    extras: Extras,
    asked: tuple[wire.Order, Parameters | None],
    layout_for: Callable[[Party], Layout],
) -> tuple[dict[str, Parameters], list[SiteResult]]:
    """The sum over sites, under no site's name."""
    order, sent = asked
    summing = SecureSum(channel, order)
    parties = summing.agree(members)
    assert summing.party is not None  # noqa: S101
    layout = layout_for(summing.party)
    results = list(summing.lost)
    extras = replace(extras, secure=summing.wanted, masked=layout.length)
    for answer in map(summing.take, exchange(channel, parties, order, sent, extras)):
        results.append(answer.result)
        del answer
    opened = summing.open(parties, layout)
    sums = {name: array.astype(np.float32) for name, array in opened.items()}
    return {_ALL_SITES: own(sums, order.statistic)}, results


def total(by_site: Mapping[str, Parameters]) -> Parameters:
    """The sum over sites, in the roster's order."""
    added: Parameters = {}
    for sums in by_site.values():
        add_up(added, sums)
    return added


def _sites(roster: Sequence[Member], memory: Memory) -> tuple[Site, ...]:
    """Those that can train, with the counts that each was asked for."""
    sites = tuple(member.site for member in roster if member.site.patients)
    if not any(name.startswith("site/") for name in memory):
        return sites
    told = {site.name: memory.get(f"site/{site.name}/counts/presence") for site in sites}
    return tuple(
        site if (counts := told[site.name]) is None else replace(site, counts=np.asarray(counts, np.float64))
        for site in sites
    )
