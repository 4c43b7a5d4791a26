"""Sites that follow a script, on a network that does too: what a coordinator's tests are played against.

The sites are a real ClientApp, and everything that is sent and answered is what Flower and the wire make of it. Run as a
program, this file carries out a short run of theirs in a folder: ``python scripted.py FOLDER [RECIPE]``.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.proto.node_pb2 import NodeInfo

from fedmed_common import wire
from fedmed_common.config import Experiment
from fedmed_common.errors import TransportAway, TransportLost
from fedmed_common.metrics import Mean
from fedmed_common.params import Parameters
from fedmed_server.app import RunRequest, run_federation
from fedmed_server.channel import Channel, Member
from fedmed_server.history import SiteFacts
from fedmed_server.rounds import RoundResult, run_round
from fedmed_server.state import RunState
from fedmed_simulations.grid import LocalGrid
from fedmed_strategies.presets import RECIPES

Number = Callable[[str, int], float | None]
"""(site, round) -> a number to answer with; None: the site fails."""
Spoil = Callable[[wire.Reply], RecordDict]
VERSION = version("fedmed")


@dataclass
class Sites:
    """Sites by name, each with so many patients in every split. What they train depends on their name and the round alone.

    ``asked`` grows with each order that is carried out: (site, kind, round, attempt).
    """

    patients: dict[str, int]
    dice: Number = lambda _site, _round: 0.5
    trains: Number = lambda _site, _round: 1.0
    joins: Callable[[str], bool] = lambda _site: True
    spoil: dict[str, Spoil] = field(default_factory=dict)
    refuse: Callable[[str, wire.Order], str] = lambda _site, _order: ""
    runs: Callable[[str], str] = lambda _site: VERSION
    asked: list[tuple[str, str, int, int]] = field(default_factory=list)

    def app(self) -> ClientApp:
        """These sites' side of Flower."""
        app = ClientApp()
        app.query("facts")(lambda message, context: self._answer(message, context, wire.Kind.FACTS))
        app.train()(lambda message, context: self._answer(message, context, wire.Kind.TRAIN))
        app.evaluate()(lambda message, context: self._answer(message, context, wire.Kind.EVALUATE))
        return app

    def grid(self) -> LocalGrid:
        """These sites on a network without faults."""
        return LocalGrid(self.app(), len(self.patients))

    def name(self, node: int) -> str:
        """The site of LocalGrid's node."""
        return list(self.patients)[node - 100]

    def roster(self) -> tuple[Member, ...]:
        """The roster that a roll call would find."""
        members = []
        for index, (name, count) in enumerate(self.patients.items()):
            patients = dict.fromkeys(("train", "validation", "test"), count)
            facts = SiteFacts(name=name, patients=patients, presence={}, version=VERSION)
            members.append(Member(node=100 + index, facts=facts))
        return tuple(sorted(members, key=lambda member: member.name))

    def _answer(self, message: Message, context: Context, kind: wire.Kind) -> Message:
        site = self.name(context.node_id)
        order = wire.unpack_order(message.content, kind)
        self.asked.append((site, kind.value, order.round, order.attempt))
        reply = self._carry_out(site, order)
        spoil = self.spoil.get(site) if kind is not wire.Kind.FACTS else None
        return Message(spoil(reply) if spoil else wire.pack_reply(reply), reply_to=message)

    def _carry_out(self, site: str, order: wire.Order) -> wire.Reply:
        reply = wire.Reply(site=site, run=order.run, round=order.round, attempt=order.attempt)
        count = self.patients[site]
        if rule := self.refuse(site, order):
            return replace(reply, code="policy", rule=rule, incident="0123")
        if order.kind is wire.Kind.FACTS and self.joins(site):
            patients = dict.fromkeys(("train", "validation", "test"), count)
            return replace(reply, facts=wire.Facts(patients=patients, presence={}, version=self.runs(site)))
        if order.kind is wire.Kind.TRAIN and self.trains(site, order.round) is not None:
            delta = update(site, order.round, order.parameters)
            loss = Mean(zlib.crc32(site.encode()) / 2**32, 1.0)
            return replace(reply, delta=delta, metrics={"loss": loss})
        if order.kind is wire.Kind.EVALUATE and (value := self.dice(site, order.round)) is not None:
            return replace(reply, metrics={"dice/disc": Mean(value * count, count)})
        return replace(reply, code="internal", incident="0123")


def update(site: str, round: int, parameters: Parameters) -> Parameters:
    """What a site trains: numbers whose sum depends on the order in which they are added."""
    rng = np.random.default_rng([zlib.crc32(site.encode()), round])
    return {
        name: (np.float32(0.1) * array + rng.normal(0, 1, array.shape)).astype(np.float32)
        for name, array in parameters.items()
    }


class Network(LocalGrid):
    """Nodes by registered names, and faults: (site, kind, round) -> what befalls the next message of that kind.

    not taken: Flower does not take the order; push fails, pull fails: the server does not answer; over: the Flower run was ended;
    lost: the order or the reply is gone; away: so is the node, for a while; restarted: the node forgets the order; slow: the
    answer takes longer; dropped: none ever comes; twice: it comes twice; mixed up: another's comes first; old: it is the round
    before's; restarts NAME: slow, and meanwhile another node forgets its order.
    """

    def __init__(self, sites: Sites, faults: dict[tuple[str, str, int], str] | None = None) -> None:
        super().__init__(sites.app(), len(sites.patients))
        self.sites, self.faults = sites, dict(faults or {})
        self.restarts = dict.fromkeys(super().get_node_ids(), 1)
        self.away = dict.fromkeys(self.restarts, 0)
        self.forgotten: set[str] = set()

    def get_nodes(self) -> list[NodeInfo]:
        """The connected nodes; a look at them is what passes for time here."""
        nodes = []
        for node, count in self.restarts.items():
            if not self.away[node]:
                nodes.append(NodeInfo(node_id=node, name=self.sites.name(node), last_activated_at=str(count)))
            else:
                self.away[node] -= 1
                self.restarts[node] += not self.away[node]
        return nodes

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Keep the messages, or not."""
        (message,) = messages
        fault = self._fault(message, "not taken", "push fails", "over")
        if fault == "not taken":
            return [""]
        self._raise(fault)
        return list(super().push_messages([message]))

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Carry the order out, unless a fault befalls it."""
        (identifier,) = message_ids
        if identifier in self.forgotten:
            return []
        message = self._pending[identifier]
        node = message.metadata.dst_node_id
        fault = self._fault(message)
        self._raise(fault)
        if fault in {"restarted", "dropped"}:
            self.forgotten.add(identifier)
            self.restarts[node] += fault == "restarted"
        elif fault.startswith("restarts "):
            self._restart(fault.split()[1])
        elif fault in {"lost", "away"}:
            del self._pending[identifier]
            self.away[node] = 3 if fault == "away" else 0
            return [Message(Error(5 if fault == "away" else 3), reply_to=message)]
        elif fault != "slow":
            return self._answers(identifier, fault)
        return []

    def _answers(self, identifier: str, fault: str) -> list[Message]:
        message = self._pending[identifier]
        if fault == "old":
            message.content.config_records["order"]["round"] -= 1  # type: ignore[operator]
        (reply,) = super().pull_messages([identifier])
        if fault == "mixed up":
            return [Message(RecordDict(), 1, "train"), reply]
        return [reply, reply] if fault == "twice" else [reply]

    def _restart(self, site: str) -> None:
        node = next(node for node in self.restarts if self.sites.name(node) == site)
        self.restarts[node] += 1
        self.forgotten |= {name for name, sent in self._pending.items() if sent.metadata.dst_node_id == node}

    def _fault(self, message: Message, *kinds: str) -> str:
        key = (
            self.sites.name(message.metadata.dst_node_id),
            message.metadata.message_type,
            int(message.metadata.group_id),
        )
        if kinds and self.faults.get(key) not in kinds:
            return ""
        return self.faults.pop(key, "")

    def _raise(self, fault: str) -> None:
        if fault in {"push fails", "pull fails"}:
            raise TransportAway("Flower's server does not answer (test)")
        if fault == "over":
            raise TransportLost("the Flower run was ended")


def experiment(
    rounds: int = 3, recipe: Mapping[str, object] | None = None, **federation: object
) -> Experiment:
    """A small one; the network is the smallest that there is."""
    return Experiment.model_validate(
        {
            "name": "discs",
            "rounds": rounds,
            "task": {"classes": ["disc"], "dimensions": 2},
            "data": {"patch": [16, 16]},
            "model": {"channels": [4, 8], "residual_units": 0},
            "train": {"steps": 1, "batch_size": 1, "threads": 1},
            "recipe": recipe or {},
            "federation": {"update_norm_limit": 1e6, "retries": 0, **federation},
        }
    )


def make_request(
    folder: Path,
    sites: Sites,
    rounds: int = 3,
    recipe: Mapping[str, object] | None = None,
    **federation: object,
) -> RunRequest:
    """A run of all these sites."""
    folder.mkdir(exist_ok=True)
    return RunRequest(
        experiment=experiment(rounds, recipe, **federation),
        folder=folder,
        command="test",
        sites=len(sites.patients),
    )


def play_round(grid: LocalGrid, sites: Sites, parameters: Parameters, **federation: object) -> RoundResult:
    """One round of training, without a roll call before and an evaluation after it."""
    channel = channel_of(grid, experiment(2, evaluate_every=2, quorum=0.5, **federation))
    return run_round(channel, RECIPES["fedavg"], sites.roster(), RunState(round=0, parameters=parameters))


def channel_of(grid: LocalGrid, asked: Experiment) -> Channel:
    """To these sites, of 'run-1'; nobody watches it."""
    return Channel(
        grid=grid,
        experiment=asked,
        run="run-1",
        watch=lambda _site, _phase: None,
        stop=threading.Event(),
        poll_seconds=0.0,
    )


if __name__ == "__main__":
    place = Path(sys.argv[1])
    place.mkdir(exist_ok=True)
    (place / "run.pid").write_text(str(os.getpid()))
    three = Sites(patients={"a": 9, "b": 7, "c": 8})
    chosen = json.loads(sys.argv[2]) if len(sys.argv) > 2 else None
    run_federation(Network(three), make_request(place, three, recipe=chosen))
