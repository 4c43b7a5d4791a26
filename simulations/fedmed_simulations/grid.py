"""Flower's Grid of a simulation, without sockets; and the sites in this process, one after the other."""

from __future__ import annotations

import time
import uuid
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from functools import partial

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from fedmed_client.app import make_client_app
from fedmed_client.workbench import SiteHome

FIRST_NODE = 100
_SERVER_NODE, _RUN = 1, 1


class SimulatedGrid(Grid):
    """Nodes are numbered from 100, and all are there all the time. What becomes of an order, a subclass says."""

    def __init__(self, nodes: int, run_id: int = _RUN) -> None:
        self._run = Run.create_empty(run_id)
        self._nodes = [NodeInfo(node_id=node) for node in range(FIRST_NODE, FIRST_NODE + nodes)]
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = run_id, _SERVER_NODE, 1

    def set_run(self, run: Run) -> None:
        """Set the run that messages belong to."""
        self._run = run

    @property
    def run(self) -> Run:
        """The run that messages belong to."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """A message to a node."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """All nodes."""
        return [node.node_id for node in self._nodes]

    def get_nodes(self) -> Iterable[NodeInfo]:
        """All nodes, which are always the same."""
        return self._nodes

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Take the messages, each under a new id."""
        identifiers = []
        for message in messages:
            identifier = uuid.uuid4().hex
            message.metadata.__dict__["_message_id"] = identifier
            self._take(identifier, message)
            identifiers.append(identifier)
        return identifiers

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Push, then pull one by one until ``timeout`` seconds have passed; the rest stays unanswered."""
        end = None if timeout is None else time.monotonic() + timeout
        replies: list[Message] = []
        for identifier in list(self.push_messages(messages)):
            if end is not None and time.monotonic() > end:
                self._leave(identifier)
            else:
                replies.extend(self.pull_messages([identifier]))
        return replies

    @abstractmethod
    def _take(self, identifier: str, message: Message) -> None:
        """See to it that the message is answered."""

    @abstractmethod
    def _leave(self, identifier: str) -> None:
        """Nobody waits for the answer any more."""


class LocalGrid(SimulatedGrid):
    """The sites in this process: an order is carried out by the ClientApp when its reply is pulled, without extra copies.

    An exception of the ClientApp is not turned into a reply, as a deployed node would do: it ends the simulation where
    it happened.
    """

    def __init__(self, client_app: ClientApp, nodes: int, run_id: int = _RUN) -> None:
        super().__init__(nodes, run_id)
        self._sites = Sites(client_app, nodes, run_id)
        self._pending: dict[str, Message] = {}

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Carry out the named orders that are still pending, and give their replies."""
        return [
            self._carry_out(self._pending.pop(name)) for name in list(message_ids) if name in self._pending
        ]

    def _take(self, identifier: str, message: Message) -> None:
        self._pending[identifier] = message

    def _leave(self, identifier: str) -> None:
        self._pending.pop(identifier, None)

    def _carry_out(self, message: Message) -> Message:
        return self._sites.carry_out(message)


class Sites:
    """The ClientApp of all nodes in one process; node ``100 + i`` has ``partition-id`` i."""

    def __init__(self, client_app: ClientApp, nodes: int, run_id: int = _RUN) -> None:
        self._app = client_app
        self._contexts: Mapping[int, Context] = {
            FIRST_NODE + index: Context(
                run_id=run_id,
                node_id=FIRST_NODE + index,
                node_config={"partition-id": index, "num-partitions": nodes},
                state=RecordDict(),
                run_config={},
            )
            for index in range(nodes)
        }
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = run_id, _SERVER_NODE, 1

    def carry_out(self, message: Message) -> Message:
        """The reply of the message's node."""
        node, before = message.metadata.dst_node_id, TaskIdentity.node_id
        TaskIdentity.node_id = node
        try:
            reply = self._app(message, self._contexts[node])
        finally:
            TaskIdentity.node_id = before
        reply.metadata.__dict__["_message_id"] = uuid.uuid4().hex
        return reply


def app_of(homes: Sequence[SiteHome]) -> ClientApp:
    """The ClientApp of these sites, in the order of the nodes."""
    return make_client_app(partial(_home_of, tuple(homes)))


def _home_of(homes: tuple[SiteHome, ...], context: Context) -> SiteHome:
    return homes[int(context.node_config["partition-id"])]
