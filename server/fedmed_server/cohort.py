"""Who takes part: the roll call of a run's sites, and the draw of a round's."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version

import numpy as np

from fedmed_common import wire
from fedmed_common.config import Experiment, Federation
from fedmed_common.errors import QuorumError
from fedmed_server.channel import Channel, Member
from fedmed_server.exchange import exchange
from fedmed_server.history import SiteFacts, SiteResult

_EVALUATION = 0xE7A1
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Roll:
    """Who answered the roll call, in the order of names; and by name of each site that was expected and did not, why."""

    members: tuple[Member, ...]
    absent: dict[str, str] = field(default_factory=dict)


def call_roll(channel: Channel, sites: int | None = None) -> Roll:
    """Ask the sites for their facts: those that the channel expects, or else every connected node.

    A simulation is strict: all its sites answer. A deployed run goes on without those that do not connect in time, refuse or
    fail, as far as the experiment's quorum allows; such a site can take part from the next resume on.

    Raises:
        QuorumError: too few sites take part.
    """
    federation = channel.experiment.federation
    if channel.expected is None:
        roll = _ask(channel, _await_nodes(channel, sites or federation.minimum_sites))
        if roll.absent:
            raise too_few("the roll call failed: " + "; ".join(_sentences(roll)))
    else:
        roll = _call_expected(channel, channel.expected)
        needed = share_of(len(channel.expected), federation.quorum)
        if len(roll.members) < needed:
            raise too_few(
                f"the roll call: {len(roll.members)} of {len(channel.expected)} sites take part, {needed} are needed. "
                + "; ".join(_sentences(roll))
            )
    able = len(trainers(roll.members))
    if able < federation.minimum_sites:
        absent = "".join(f"; {sentence}" for sentence in _sentences(roll))
        raise too_few(
            f"{able} sites can train; federation.minimum_sites is {federation.minimum_sites}{absent}"
        )
    return roll


def trainers(roster: Sequence[Member]) -> list[Member]:
    """The sites that can train, in roster order."""
    return [member for member in roster if member.facts.patients["train"]]


def draw(roster: Sequence[Member], experiment: Experiment, round_number: int) -> tuple[Member, ...]:
    """The sites that train in this round: so many of those with training patients as the experiment says."""
    able, federation = trainers(roster), experiment.federation
    wanted = federation.sites_per_round
    if wanted is None:
        wanted = max(federation.minimum_sites, share_of(len(able), federation.fraction))
    return chosen(able, wanted, [experiment.seed, round_number])


def evaluators(roster: Sequence[Member], experiment: Experiment) -> tuple[Member, ...]:
    """The sites that measure the model after a round: the same ones after each, so that rounds can be compared."""
    able = [member for member in roster if member.facts.patients["validation"]]
    wanted = experiment.federation.evaluation_sites
    return chosen(able, len(able) if wanted is None else wanted, [experiment.seed, 0, _EVALUATION])


def chosen(members: Sequence[Member], wanted: int, seed: Sequence[int]) -> tuple[Member, ...]:
    """So many of the members, all with the same chance, in roster order; all of them where there are no more."""
    if wanted >= len(members):
        return tuple(members)
    places = np.random.default_rng(seed).choice(len(members), size=wanted, replace=False)
    return tuple(members[place] for place in sorted(places))


def too_few(problem: str) -> QuorumError:
    """The error of a run that has not enough sites, with what to do about it."""
    return QuorumError(
        f"{problem}\n  fix: see to these sites; 'fedmed resume' then goes on from the last finished round"
    )


def check_quorum(federation: Federation, results: Sequence[SiteResult], what: str) -> None:
    """Refuse to go on with fewer usable answers than the experiment asks for.

    Raises:
        QuorumError: names the sites, and why each has given none.
    """
    usable = sum(result.outcome == "ok" for result in results)
    needed = max(federation.minimum_sites, share_of(len(results), federation.quorum))
    if usable < needed:
        problems = "; ".join(result.problem() for result in results if result.outcome != "ok")
        raise too_few(
            f"{what}: {usable} of {len(results)} sites gave a usable answer, {needed} are needed. {problems}"
        )


def share_of(sites: int, share: float) -> int:
    """So many sites at least; 0.28 of 25 is 7, although their product as floats is a little more."""
    return math.ceil(round(sites * share, 9))


def _call_expected(channel: Channel, expected: Sequence[str]) -> Roll:
    connected = _await_names(channel, expected)
    roll = _ask(channel, connected)
    missing = sorted(set(expected) - connected.keys())
    absent = {
        name: "revoked" if channel.is_revoked(name) else "not connected" for name in missing
    } | roll.absent
    members = []
    for member in roll.members:
        if _series(member.facts.version) == _series(version("fedmed")):
            members.append(member)
        else:
            absent[member.name] = f"it runs fedmed {member.facts.version}, this server {version('fedmed')}"
    for name, why in absent.items():
        _log.warning("%s missed the roll call: %s", name, why)
    return Roll(members=tuple(members), absent=absent)


def _ask(channel: Channel, nodes: dict[str, int]) -> Roll:
    """The facts of the nodes' sites. The nodes' names are those that are registered, or stand in until the sites say theirs."""
    asked = [
        Member(node=node, facts=SiteFacts(name=name, patients={}, presence={}, version=""))
        for name, node in nodes.items()
    ]
    order = wire.Order(
        kind=wire.Kind.FACTS, run=channel.run, round=0, attempt=0, experiment=channel.experiment.order_text()
    )
    members: dict[str, Member] = {}
    absent: dict[str, str] = {}
    for answer in exchange(channel, asked, order):
        reply = answer.reply
        if reply is None or reply.facts is None:
            absent[answer.result.site] = answer.result.reason()
        elif reply.site in members:
            absent[reply.site] = "two nodes answer to this name"
        else:
            facts = SiteFacts(
                name=reply.site,
                patients=reply.facts.patients,
                presence=reply.facts.presence,
                version=reply.facts.version,
                withdrawn_from=reply.facts.withdrawn_from,
                held_out=reply.facts.held_out,
                sites=0 if reply.region is None else reply.region.asked,
            )
            if facts.withdrawn_from:
                _log.warning(
                    "%s: patients withdrew on whom %s runs had trained", facts.name, facts.withdrawn_from
                )
            members[reply.site] = Member(node=answer.member.node, facts=facts)
    return Roll(members=tuple(members[name] for name in sorted(members)), absent=absent)


def _sentences(roll: Roll) -> list[str]:
    return [f"{name}: {why}" for name, why in roll.absent.items()]


def _await_nodes(channel: Channel, wanted: int) -> dict[str, int]:
    seconds = channel.experiment.federation.deadline_seconds
    end = time.monotonic() + seconds
    while True:
        nodes = sorted(channel.through(channel.grid.get_node_ids, end))
        if len(nodes) >= wanted:
            return {f"node {node}": node for node in nodes}
        if time.monotonic() > end:
            raise too_few(f"{len(nodes)} of {wanted} sites are connected after {seconds:g} s")
        channel.pause()


def _await_names(channel: Channel, expected: Sequence[str]) -> dict[str, int]:
    """The nodes of the expected sites by registered name, once all that may come have, or the time for that is over."""
    end = time.monotonic() + channel.experiment.federation.roll_call_seconds
    said: set[str] = set()
    while True:
        nodes = {node.name: node.node_id for node in channel.through(channel.grid.get_nodes, end)}
        may_come = [name for name in sorted(set(expected)) if not channel.is_revoked(name)]
        connected = {name: nodes[name] for name in may_come if name in nodes}
        if len(connected) == len(may_come) or time.monotonic() > end:
            return connected
        for name in sorted(set(may_come) - connected.keys() - said):
            channel.watch(name, "not connected")
            said.add(name)
        channel.pause()


def _series(text: str) -> list[str]:
    """Major and minor version: sites and server of one series work together."""
    return text.split(".")[:2]
