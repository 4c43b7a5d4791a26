"""Flower's Grid in one process: no sockets, no extra copies.

An order is carried out by the ClientApp when its reply is pulled.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Mapping

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

_SERVER_NODE = 1


class LocalGrid(Grid):
    """Nodes are numbered from 100; node ``100 + i`` runs the ClientApp with ``partition-id`` i.

    An exception of the ClientApp is not turned into a reply, as a deployed node would do: it ends the simulation where
    it happened.
    """

    def __init__(self, client_app: ClientApp, nodes: int, run_id: int = 1) -> None:
        self._app = client_app
        self._run = Run.create_empty(run_id)
        self._contexts: Mapping[int, Context] = {
            100 + index: Context(
                run_id=run_id,
                node_id=100 + index,
                node_config={"partition-id": index, "num-partitions": nodes},
                state=RecordDict(),
                run_config={},
            )
            for index in range(nodes)
        }
        self._nodes = [NodeInfo(node_id=node) for node in self._contexts]
        self._pending: dict[str, Message] = {}
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
        return list(self._contexts)

    def get_nodes(self) -> Iterable[NodeInfo]:
        """All nodes, which are always the same."""
        return self._nodes

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Keep the messages until their replies are pulled."""
        identifiers = []
        for message in messages:
            identifier = uuid.uuid4().hex
            message.metadata.__dict__["_message_id"] = identifier
            self._pending[identifier] = message
            identifiers.append(identifier)
        return identifiers

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Carry out the named orders that are still pending, and give their replies."""
        return [
            self._carry_out(self._pending.pop(name)) for name in list(message_ids) if name in self._pending
        ]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Push, then carry out one by one until ``timeout`` seconds have passed; the rest stays unanswered."""
        end = None if timeout is None else time.monotonic() + timeout
        replies: list[Message] = []
        for identifier in list(self.push_messages(messages)):
            if end is not None and time.monotonic() > end:
                self._pending.pop(identifier)
            else:
                replies.extend(self.pull_messages([identifier]))
        return replies

    def _carry_out(self, message: Message) -> Message:
        node = message.metadata.dst_node_id
        TaskIdentity.node_id = node
        try:
            reply = self._app(message, self._contexts[node])
        finally:
            TaskIdentity.node_id = _SERVER_NODE
        reply.metadata.__dict__["_message_id"] = uuid.uuid4().hex
        return reply
