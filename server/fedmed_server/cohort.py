"""Who takes part: the roster of sites, the draw of a round's sites, and the exchange of one round's messages with them."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from flwr.app import ArrayRecord, Message
from flwr.serverapp import Grid

from fedmed_common import wire
from fedmed_common.config import Experiment
from fedmed_common.errors import Interrupted, QuorumError, RejectedReply
from fedmed_common.params import Parameters
from fedmed_server import gate
from fedmed_server.history import SiteFacts, SiteResult

_POLL_SECONDS = 0.05
_FINAL_CODES = frozenset({"policy", "config", "labels", "data"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One site of the run's roster."""

    node: int
    facts: SiteFacts

    @property
    def name(self) -> str:
        """The site's name."""
        return self.facts.name


@dataclass(frozen=True, slots=True, kw_only=True)
class Channel:
    """What every exchange of a run needs.

    ``watch(site, phase)`` is told who is asked and who has answered; ``stop`` ends the run.
    """

    grid: Grid
    experiment: Experiment
    run: str
    watch: Callable[[str, str], None]
    stop: threading.Event


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One site's part in an exchange: the result to record and, where all went well in training, its update."""

    member: Member
    result: SiteResult
    delta: Parameters


def call_roll(channel: Channel, expected_sites: int | None = None) -> tuple[Member, ...]:
    """Ask every connected node for its site's facts; the roster in order of names.

    Raises:
        QuorumError: a site refuses or fails, two nodes give the same name, or fewer than ``federation.minimum_sites`` can train.
    """
    nodes = _await_nodes(channel, expected_sites or channel.experiment.federation.minimum_sites)
    anonymous = [
        Member(node=node, facts=SiteFacts(name=f"node {node}", patients={}, presence={}, version=""))
        for node in nodes
    ]
    members: dict[str, Member] = {}
    problems: list[str] = []
    order = wire.Order(
        kind=wire.Kind.FACTS, run=channel.run, round=0, attempt=0, experiment=channel.experiment.order_text()
    )
    for member, reply, result in _exchange(channel, anonymous, order, None):
        if reply is None or reply.facts is None:
            problems.append(result.problem())
        elif reply.site in members:
            problems.append(f"{reply.site}: two nodes answer to this name")
        else:
            facts = SiteFacts(
                name=reply.site,
                patients=reply.facts.patients,
                presence=reply.facts.presence,
                version=reply.facts.version,
            )
            members[reply.site] = Member(node=member.node, facts=facts)
    if problems:
        raise QuorumError("the roll call failed: " + "; ".join(problems))
    roster = tuple(members[name] for name in sorted(members))
    trainers = sum(member.facts.patients["train"] > 0 for member in roster)
    if trainers < channel.experiment.federation.minimum_sites:
        raise QuorumError(
            f"{trainers} sites can train; federation.minimum_sites is {channel.experiment.federation.minimum_sites}"
        )
    return roster


def draw(roster: Sequence[Member], experiment: Experiment, round_number: int) -> tuple[Member, ...]:
    """The sites that train in this round: a share of those with training patients, seeded by (seed, round), in roster order."""
    trainers = [member for member in roster if member.facts.patients["train"]]
    wanted = max(experiment.federation.minimum_sites, share_of(len(trainers), experiment.federation.fraction))
    if wanted >= len(trainers):
        return tuple(trainers)
    rng = np.random.default_rng([experiment.seed, round_number])
    chosen = sorted(rng.choice(len(trainers), size=wanted, replace=False))
    return tuple(trainers[index] for index in chosen)


def share_of(sites: int, share: float) -> int:
    """So many sites at least; 0.28 of 25 is 7, although their product as floats is a little more."""
    return math.ceil(round(sites * share, 9))


def exchange(
    channel: Channel,
    members: Sequence[Member],
    order: wire.Order,
    parameters: Parameters,
) -> Iterator[Answer]:
    """Send the order to the members and yield their answers one at a time, in the given order of members.

    All work at once; a reply that comes early waits in Flower's store, so this side holds one at a time, and sums of
    floats do not depend on who is fast. A site that fails is asked again at its turn, ``federation.retries`` times; one
    that refuses is not.
    """
    template = parameters if order.kind is wire.Kind.TRAIN else None
    packed = wire.pack_parameters(parameters)
    for member, reply, result in _exchange(channel, members, order, template, packed):
        yield Answer(member=member, result=result, delta=reply.delta if reply is not None else {})


def _await_nodes(channel: Channel, wanted: int) -> list[int]:
    end = time.monotonic() + channel.experiment.federation.deadline_seconds
    while True:
        nodes = sorted(channel.grid.get_node_ids())
        if len(nodes) >= wanted:
            return nodes
        if time.monotonic() > end:
            raise QuorumError(
                f"{len(nodes)} of {wanted} sites are connected after {channel.experiment.federation.deadline_seconds:g} s"
            )
        _pause(channel)


def _exchange(
    channel: Channel,
    members: Sequence[Member],
    order: wire.Order,
    template: Parameters | None,
    packed: ArrayRecord | None = None,
) -> Iterator[tuple[Member, wire.Reply | None, SiteResult]]:
    end = time.monotonic() + channel.experiment.federation.deadline_seconds
    down = 0 if packed is None else sum(len(array.data) for array in packed.values())
    sent = {member.node: _send(channel, member, order, packed) for member in members}
    for member in members:
        attempt = order
        while True:
            message = _receive(channel, member, sent[member.node], end)
            reply, result = _judge(channel, member, attempt, template, message)
            if not sent[member.node]:
                result = result.model_copy(update={"outcome": "failed", "code": "undeliverable"})
            retry = result.outcome in {"failed", "rejected"} and result.code not in _FINAL_CODES
            if (
                not retry
                or attempt.attempt - order.attempt >= channel.experiment.federation.retries
                or time.monotonic() > end
            ):
                break
            attempt = replace(attempt, attempt=attempt.attempt + 1)
            sent[member.node] = _send(channel, member, attempt, packed)
        channel.watch(result.site, result.outcome)
        yield member, reply, result.model_copy(update={"bytes_down": down})


def _send(channel: Channel, member: Member, order: wire.Order, packed: ArrayRecord | None) -> str:
    """The message's id; empty where Flower did not take it."""
    _check_stop(channel)
    seconds = channel.experiment.federation.deadline_seconds
    message = Message(
        wire.pack_order(order, packed),
        member.node,
        order.kind.value,
        group_id=str(order.round),
        ttl=max(seconds, 1.0) + 60.0,
    )
    identifiers = list(channel.grid.push_messages([message]))
    channel.watch(member.name, "asked")
    return (identifiers[0] or "") if identifiers else ""


def _receive(channel: Channel, member: Member, identifier: str, end: float) -> Message | None:
    channel.watch(member.name, "awaited")
    while identifier:
        _check_stop(channel)
        for message in channel.grid.pull_messages([identifier]):
            return message
        if time.monotonic() > end:
            break
        _pause(channel)
    return None


def _judge(
    channel: Channel, member: Member, order: wire.Order, template: Parameters | None, message: Message | None
) -> tuple[wire.Reply | None, SiteResult]:
    anonymous = order.kind is wire.Kind.FACTS
    blank = SiteResult(site=member.name, patients=_patients(member, order))
    if message is None:
        return None, blank.model_copy(update={"outcome": "late", "code": "deadline"})
    if message.has_error():
        return None, blank.model_copy(update={"outcome": "failed", "code": f"transport-{message.error.code}"})
    expected = gate.Expected(
        site=None if anonymous else member.name,
        run=order.run,
        round=order.round,
        attempt=order.attempt,
        kind=order.kind,
        classes=channel.experiment.task.classes,
        metrics=gate.allowed_metrics(
            order.kind, channel.experiment.task.classes, channel.experiment.task.surface_metrics
        ),
        patients=None if anonymous else _patients(member, order),
        steps=channel.experiment.train.steps,
        template=template,
        norm_limit=channel.experiment.federation.update_norm_limit,
    )
    size = wire.parameter_bytes(message.content)
    try:
        reply = gate.admit(message.content, expected)
    except RejectedReply as error:
        return None, blank.model_copy(update={"outcome": "rejected", "code": error.reason, "bytes_up": size})
    if reply.code:
        outcome = "refused" if reply.code == "policy" else "failed"
        return None, blank.model_copy(
            update={
                "site": reply.site,
                "outcome": outcome,
                "code": reply.rule or reply.code,
                "incident": reply.incident,
                "bytes_up": size,
            }
        )
    metrics = {name: (mean.total, mean.weight) for name, mean in reply.metrics.items()}
    return reply, blank.model_copy(update={"metrics": metrics, "seconds": reply.seconds, "bytes_up": size})


def _patients(member: Member, order: wire.Order) -> int:
    return member.facts.patients.get("train" if order.kind is wire.Kind.TRAIN else order.split, 0)


def _check_stop(channel: Channel) -> None:
    if channel.stop.is_set():
        raise Interrupted("stopped on request")


def _pause(channel: Channel) -> None:
    _check_stop(channel)
    channel.stop.wait(_POLL_SECONDS)
